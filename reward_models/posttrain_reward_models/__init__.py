"""Models that grade. A recipe names one as package.module:Name, as it names a verifier."""
