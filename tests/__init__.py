"""One file a module; transcripts/ are stories; wire/ uses real sockets; gpu/ needs one."""
