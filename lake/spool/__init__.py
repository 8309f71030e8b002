"""The live way in: from an accepted event to rows of the lake. It knows nothing of HTTP."""
