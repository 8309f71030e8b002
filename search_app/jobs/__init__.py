"""Long work of the app in processes of its own: jobs, and the programs they run."""
