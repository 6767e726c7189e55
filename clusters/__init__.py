"""Starting trainings: the files and commands of jobs on clusters, and gangs of workers on this machine."""
