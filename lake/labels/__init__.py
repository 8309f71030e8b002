"""Labels that people gave, in labelling tools or in the app."""
