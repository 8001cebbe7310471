"""The public face of training and acting: :class:`AgentGPT`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.local_server import LocalPolicyServer
from agentgpt_remote.policy.runner import Engine
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.run import TrainingRun, start_training

if TYPE_CHECKING:
    from agentgpt_remote.cloud.config import SageMakerConfig
    from agentgpt_remote.cloud.job import CloudTrainingRun


class AgentGPT:
    """Train a GPT and act with it, here or elsewhere. Every method is static."""

    @staticmethod
    def train_on_local(
        hyperparameters: Hyperparameters,
        env: Any | Sequence[Any] | None = None,
        *,
        run_id: str | None = None,
        runs_dir: str | Path = "runs",
        force: bool = False,
        token: str | None = None,
    ) -> TrainingRun:
        """Train in a process of its own on this machine, and return at once.

        Args:
            hyperparameters: what to learn and how; ``env_id`` or ``env_hosts`` name the environments.
            env: environments instead of those: a :class:`RemoteEnv`, a :class:`RemoteVectorEnv`, a
                :class:`RemoteParallelEnv`, the URL of a host, or a list of them.
            run_id: name of the run's folder; by default the environment's id, with a number where it is taken.
            runs_dir: folder of all runs.
            force: replace an existing run of that id.
            token: token of the hosts; ``AGENTGPT_TOKEN`` by default.

        Returns:
            The run: wait for it, look at its status, stop it, or act with its policy.

        Raises:
            ConfigError: no environment is named, or what ``env`` holds can't be trained on from another process.
            RunExists: the run id is taken, and neither ``force`` nor ``resume_training`` is set.
        """
        return start_training(hyperparameters, env, run_id=run_id, runs_dir=runs_dir, force=force, token=token)

    @staticmethod
    def run_on_local(
        bundle: str | Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        deterministic: bool = True,
        seed: int | None = None,
        watch: bool = False,
        max_agents: int | None = None,
        engine: Engine = "auto",
        behavior: str | None = None,
    ) -> GPTPolicy:
        """Start a policy server on this machine and return a policy that acts through it.

        Args:
            bundle: folder of a trained policy, such as ``runs/CartPole-v1/policy``.
            host: address to listen on; anything but loopback needs a token.
            port: 0 takes a free one.
            token: token of the server; a random one by default.
            deterministic: take the likeliest action instead of sampling.
            seed: seed of sampling.
            watch: take new weights when the bundle changes, as while it is being trained.
            max_agents: most agents at once; by default as many as fit in 4 GiB.
            engine: what runs the model, see :class:`GPTPolicy`.
            behavior: whose policy is returned, where the bundle holds several; the server has all of them.

        Returns:
            A policy; closing it ends the server, and so does the end of this process.

        Raises:
            BundleError: the bundle is missing, damaged or of another version.
            PortInUse: another process listens on the port.
        """
        server = LocalPolicyServer(
            bundle, host=host, port=port, token=token, watch=watch, max_agents=max_agents, engine=engine
        )
        return server.policy(deterministic=deterministic, seed=seed, behavior=behavior)

    @staticmethod
    def train_on_cloud(
        sagemaker_config: SageMakerConfig,
        hyperparameters: Hyperparameters,
        env: Any | Sequence[Any] | None = None,
        *,
        token: str | None = None,
        runs_dir: str | Path = "runs",
    ) -> CloudTrainingRun:
        """Start a training job in Amazon SageMaker, and return at once.

        Everything that can be checked is checked before the job is asked for: the configuration against AWS's own
        model, the bucket, the image, the role and the quota where the credentials allow a look, and that the cloud can
        reach the hosts.

        Args:
            sagemaker_config: where and on what.
            hyperparameters: what to learn and how; ``env_id`` runs in the job itself, ``env_hosts`` elsewhere.
            env: environments instead of those, as for :meth:`train_on_local`. Their addresses travel with the job,
                their tokens never do: ``sagemaker_config.secrets`` names where they are kept.
            token: of the hosts; only to tell that they have one.
            runs_dir: folder that the trained policy is downloaded to.

        Returns:
            The run: ``run.latest_training_job.name``, and wait, stop, logs, metrics and policy.

        Raises:
            ConfigError: a field is missing or refused, or the cloud can't reach a host; nothing was started.
            AuthError: there are no credentials, or they may not do it.
            CapacityReached: the account's quota is used up.
            RunExists: a job of that name is there.
        """
        from agentgpt_remote.cloud.job import submit_training

        return submit_training(sagemaker_config, hyperparameters, env, token=token, runs_dir=runs_dir)

    @staticmethod
    def run_on_cloud(
        sagemaker_config: SageMakerConfig,
        user_endpoint_name: str | None = None,
        *,
        deterministic: bool = True,
        seed: int | None = None,
    ) -> GPTPolicy:
        """Return a policy that acts through an endpoint of Amazon SageMaker: an existing one, or one that is deployed.

        An endpoint that is deployed deletes itself after ``sagemaker_config.expiry_hours``; closing the policy leaves
        it running, ``agentgpt cloud stop NAME`` ends it.

        Args:
            sagemaker_config: where and on what; to deploy, it needs ``model_data``.
            user_endpoint_name: of the endpoint; that of the configuration, or a made-up one, by default.
            deterministic: take the likeliest action instead of sampling.
            seed: seed of sampling.

        Raises:
            ConfigError: a field is missing or refused; nothing was started.
            AuthError: there are no credentials, or they may not do it.
            CloudError: the endpoint failed; what was made for it is deleted, or the text says what is left.
        """
        from agentgpt_remote.cloud.deployment import deploy

        name = deploy(sagemaker_config, user_endpoint_name)
        region = sagemaker_config.region
        url = f"sagemaker://{name}" + ("" if region is None else f"?region={region}")
        return GPTPolicy(url, deterministic=deterministic, seed=seed)
