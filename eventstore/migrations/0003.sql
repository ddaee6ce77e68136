-- Release 2 to 3. The functions of release 3 follow from schema.sql; its tables are those of release 2.

select;
