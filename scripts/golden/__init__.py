"""The golden corpus: what one version of prunekit computes, kept to be compared with later ones."""
