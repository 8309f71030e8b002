"""Who may call the server, and limits on what is sent to it."""
