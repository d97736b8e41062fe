"""The `longrope` command and what starts it on many processes: thin, no algorithm lives here."""
