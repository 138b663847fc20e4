"""Speed measurements: fused ops and whole inner loops against what people run today."""
