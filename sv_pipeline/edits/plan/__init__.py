"""What an edit will change, worked out from what it reads. Writes nothing."""
