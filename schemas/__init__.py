"""The contracts: tables, recipe, records and statuses. Nothing here reads or writes a file."""
