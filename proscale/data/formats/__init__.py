"""Readers and writers of files of data sets."""
