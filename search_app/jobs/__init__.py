"""Long work in processes of its own, and the programs they run."""
