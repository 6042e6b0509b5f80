"""What `odd_files` and `disks` put around a run."""
