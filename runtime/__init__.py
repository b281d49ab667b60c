"""Process, hardware, files and errors: what all other packages build on."""
