"""APIs of other services, each a translation onto the job API (ADR 36). `DF_COMPAT` turns them off."""
