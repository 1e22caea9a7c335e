//! From what the user names (an id, a directory, a file) to the files to open.
