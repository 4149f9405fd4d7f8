"""The papers' tables and figures as recipes over runs: what is compared (`catalogue`), carried out (`runner`), measured
(`measured`), told (`findings`) and left in a folder (`outcomes`)."""
