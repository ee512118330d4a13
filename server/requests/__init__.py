"""From a checked body to a job: prompt ids, sampling, the answer's form."""
