"""Run mode `pipeline` on Apache Beam: files in, a graph of named steps, sharded files out."""
