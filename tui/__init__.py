"""The dashboard: watches run directories, starts, stops and resumes runs. It imports no torch and owns no run."""
