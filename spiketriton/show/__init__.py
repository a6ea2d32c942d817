"""Words, pictures and tables that several commands share; what only one shows is in its room."""
