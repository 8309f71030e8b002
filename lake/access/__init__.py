"""Who may use the lake, and who did what: access keys and the audit log."""
