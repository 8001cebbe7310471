"""Amazon SageMaker: the only folder that imports boto3."""
