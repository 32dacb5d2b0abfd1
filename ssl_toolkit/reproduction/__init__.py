"""The paper's ablations as sweeps: trained, evaluated, and put beside the paper's numbers."""

from ssl_toolkit.reproduction.identity import code_digest, run_identity
from ssl_toolkit.reproduction.studies import Row, Study, read_study, study_names

__all__ = ["Row", "Study", "code_digest", "read_study", "run_identity", "study_names"]
