"""What a run is on disk, how it begins, resumes and ends."""
