"""Reconstruction: layers behind a cut are refitted to what the dense network puts out."""
