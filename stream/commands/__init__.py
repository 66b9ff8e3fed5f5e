"""The commands of `ebbtide`, one a file."""
