"""Other networks that answer through the same engine: one file each, which brings a `Sam2Network` and reads its checkpoints."""
