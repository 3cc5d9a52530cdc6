"""One file a module; transcripts/ are stories; wire/ uses sockets; gpu/ needs one."""
