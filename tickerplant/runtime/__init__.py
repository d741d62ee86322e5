"""The shells that do I/O: sockets, files, processes, clocks."""
