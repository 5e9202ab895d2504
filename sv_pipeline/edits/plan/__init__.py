"""Plans what an edit will change, from the rows and voxels that it reads. Writes nothing."""
