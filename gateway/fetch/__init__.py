"""From a remote repository to one exact commit. The only room that starts git."""
