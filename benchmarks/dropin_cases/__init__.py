"""What the drop-ins are timed on, one file a project: the original's loop first, then the same with our import."""
