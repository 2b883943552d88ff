"""What a run is on disk, and how it starts, resumes and ends."""
