"""The commands: ``app`` is their framework."""

from ddpm.lifetime import end_import_with_launcher

end_import_with_launcher()  # torch, which comes next, may take longer to import than we may live on
