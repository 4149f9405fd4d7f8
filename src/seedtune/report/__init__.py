"""Pictures of runs and studies. It reads what runs left; it never trains."""
