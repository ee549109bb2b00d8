"""Duplicates: hashes of images, the search for near ones, and which row of a group stays."""
