"""Every promise of the contract, over HTTP."""
