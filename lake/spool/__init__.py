"""The way in for a live system: from a request to rows of the lake. No HTTP here."""
