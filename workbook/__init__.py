"""The workbook of the paper VIRAL: profiles, pipeline, benchmarks, tables and figures, around `viral_core`."""
