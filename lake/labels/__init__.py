"""Labels from people, in labelling tools or in the app."""
