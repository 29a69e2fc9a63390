"""Tests of the Deep Q-Network: environments, replay buffer, training steps and resumed training."""

import importlib.util
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import check_task
from fukami import UsageError, models
from fukami.engine.runtime import Runtime
from fukami.image import io as image_io
from fukami.reinforcement import env_registry, vector_env
from fukami.reinforcement.catch import GRID_SIZE, PADDLE_WIDTH, Catch
from fukami.reinforcement.dqn import DQN
from fukami.reinforcement.evaluation import EvaluationEpisodes
from fukami.reinforcement.replay import ExperienceCollector, ReplayBuffer
from fukami.reinforcement.task import EpisodeResults, QLearningTask

SMALL = {
    "steps": 400,
    "learning_starts": 160,
    "buffer_size": 400,
    "exploration_fraction": 0.25,
    "hidden": 16,
    "eval_episodes": 4,
    "eval_every": 120,
}


@pytest.fixture
def build_task():
    """Function that builds an untrained task and its data."""

    def build(**fields):
        recipe = DQN(**SMALL | fields)
        data = recipe.load_data()
        torch.manual_seed(0)
        task = recipe.build_task(data.labels)
        runtime = Runtime.start("cpu", "float32")
        data.train.setup(runtime)
        task.setup(runtime)
        task.prepare_training()
        return task, data

    return build


def test_network_has_the_papers_layers():
    """Extended data table 1; 1,693,362 parameters with 18 actions."""
    network = models.dqn()
    convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    assert [(layer.out_channels, layer.kernel_size[0], layer.stride[0]) for layer in convolutions] == [
        (32, 8, 4), (64, 4, 2), (64, 3, 1),
    ]  # fmt: skip
    expected = (4 * 64 * 32 + 32) + (32 * 16 * 64 + 64) + (64 * 9 * 64 + 64) + (3136 * 512 + 512) + (512 * 18 + 18)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert network(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape == (2, 18)
    assert models.dqn(3, state_shape=(8,))(torch.zeros(2, 4, 2)).shape == (2, 3)
    with pytest.raises(ValueError, match="at least 36×36"):
        models.dqn(state_shape=(4, 20, 20))
    with pytest.raises(ValueError, match=r"\(frames, height, width\) or \(length,\)"):
        models.dqn(state_shape=(4, 20))


def test_the_states_are_not_changed():
    states = torch.randint(0, 256, (2, 4, 84, 84)).float().contiguous(memory_format=torch.channels_last)
    network, copy = models.dqn(), states.clone()
    network.fit_input_statistics(copy[:, 0])
    with torch.inference_mode():
        values = network(states)
        assert torch.equal(states, copy)
        torch.testing.assert_close(values, network(states.to(torch.uint8)))


def test_action_values_are_float32_in_mixed_precision():
    torch.manual_seed(0)
    network, states = models.dqn(), torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    network.values.reset_parameters()  # the initial values are too close to 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        values = network(states)
    assert values.dtype == torch.float32
    assert (values != values.bfloat16()).any()
    with torch.inference_mode():
        torch.testing.assert_close(values, network(states), rtol=0.02, atol=0.01)


def test_input_frames_are_standardized():
    """The input of the first layer has mean 0 at each pixel and variance 1."""
    torch.manual_seed(0)
    network, layer_inputs = models.dqn(state_shape=(1, 40, 36)), []
    network.layers[0].register_forward_pre_hook(lambda _, inputs: layer_inputs.append(inputs[0]))
    frames = (torch.rand(40, 36) * 200 + torch.rand(30, 40, 36) * 50).byte()
    network.fit_input_statistics(frames)
    network(frames.unsqueeze(1))
    assert layer_inputs[0].mean(0).abs().max() < 1e-4
    assert layer_inputs[0].square().mean().item() == pytest.approx(1, rel=1e-4)
    assert frames.dtype == torch.uint8
    network.fit_input_statistics(torch.full((2, 40, 36), 7))
    assert network(frames.unsqueeze(1)).isfinite().all()


def test_input_statistics_come_from_the_random_policy(build_task):
    task, data = build_task()
    assert task.model.std == 255
    next(task.iterate_batches(data.train))
    buffer = data.train.buffer
    frames = buffer.tensors["frames"][: buffer.current_step + 1].flatten(0, 1).float()
    torch.testing.assert_close(task.model.mean, frames.mean(0))
    assert torch.equal(task.target_network.mean, task.model.mean)
    assert torch.equal(task.target_network.std, task.model.std)
    assert task.model.std < 100


def test_optimal_policy_catches_every_ball():
    """A policy that knows where the ball lands has the return 1, the maximum."""
    count = 200
    env = Catch(count)
    env.reset(np.ones(count, bool), np.arange(count))
    total = np.zeros(count)
    for _ in range(GRID_SIZE - 1):
        target = _compute_landing_columns(env)
        middle = env.paddle + PADDLE_WIDTH // 2
        env.send(np.where(target < middle, 1, np.where(target > middle, 2, 0)))
        result = env.receive()
        total += result.rewards
    assert result.terminated.all()
    assert (total == 1).all()


def test_optimal_return_with_epsilon_0_05():
    """Backward induction over all states computes the value that docs/landmarks/dqn.md states."""
    columns, drifts, paddles = (grid.ravel() for grid in np.mgrid[:GRID_SIZE, -1:2, : GRID_SIZE - PADDLE_WIDTH + 1])
    env = Catch(len(columns))
    values = np.zeros((GRID_SIZE, 3, GRID_SIZE - PADDLE_WIDTH + 1))
    for row in reversed(range(GRID_SIZE - 1)):
        action_values = np.zeros((len(env.action_names), len(columns)))
        for action in range(len(action_values)):
            env.ball = np.stack([columns, np.full(len(columns), row)], 1)
            env.drift, env.paddle = drifts, paddles
            env.send(np.full(len(columns), action))
            action_values[action] = env.receive().rewards + values[env.ball[:, 0], env.drift + 1, env.paddle]
        values = (0.95 * action_values.max(0) + 0.05 * action_values.mean(0)).reshape(values.shape)
    assert values.mean() == pytest.approx(0.992, abs=5e-4)


def _compute_landing_columns(env):
    """Compute the column where each ball lands, by reflection."""
    remaining_steps = GRID_SIZE - 1 - env.ball[:, 1]
    period = 2 * (GRID_SIZE - 1)
    position = np.mod(env.ball[:, 0] + env.drift * remaining_steps, period)
    return np.where(position < GRID_SIZE, position, period - position)


def test_equal_seeds_give_equal_episodes():
    one, other = Catch(3), Catch(3)
    for env in (one, other):
        env.reset(np.ones(3, bool), np.array([5, 6, 7]))
    one.reset(np.array([False, True, False]), np.array([0, 6, 0]))
    assert np.array_equal(one.ball, other.ball)
    assert np.array_equal(one.render(1), other.render(1))


def test_stacked_frames_are_those_added():
    """The first frame of an episode is repeated in place of frames before it."""
    buffer = ReplayBuffer(2, (3, 3), capacity=6)
    buffer.allocate(torch.device("cpu"))
    episode_starts = {0: {0, 4}, 1: {0, 6, 7}}
    for step in range(9):
        frames = torch.stack([torch.full((3, 3), 10 * step + index + 1, dtype=torch.uint8) for index in range(2)])
        buffer.add(frames, torch.tensor([step in episode_starts[index] for index in range(2)]))
    for index in range(2):
        for step in range(4, 8):
            frames = buffer.stack_frames(torch.tensor([step]), torch.tensor([index]), 4, num_next_frames=1)[
                0, :, 0, 0
            ].tolist()
            start = max(first for first in episode_starts[index] if first <= step)
            expected = [10 * max(frame_step, start) + index + 1 for frame_step in range(step - 3, step + 1)]
            assert frames == [*expected, 10 * (step + 1) + index + 1]


def test_each_frame_is_stored_once():
    """A million steps of the paper's frames take 7 GB rather than 28 GB."""
    assert ReplayBuffer(4, (84, 84), 250_000).num_bytes < 1.06 * 7.1e9


def test_buffer_is_restored_from_files(tmp_path):
    """Another buffer reads the files; steps of a checkpoint are not overwritten within the slack."""
    one = ReplayBuffer(1, (2, 2), capacity=10)
    one.open_files(tmp_path)
    one.allocate(torch.device("cpu"))
    for step in range(300):
        one.add(torch.full((1, 2, 2), step % 251, dtype=torch.uint8), torch.tensor([step == 0]))
    current_step, oldest = one.current_step, one.find_oldest_step()
    for step in range(300, 300 + one.num_reserve_steps):
        one.add(torch.full((1, 2, 2), step % 251, dtype=torch.uint8), torch.tensor([False]))
    other = ReplayBuffer(1, (2, 2), capacity=10)
    other.open_files(tmp_path)
    other.allocate(torch.device("cpu"))
    other.current_step = current_step
    steps = torch.arange(oldest, current_step + 1)
    frames = other.stack_frames(steps, torch.zeros_like(steps), 1)[:, 0, 0, 0]
    assert frames.tolist() == [step % 251 for step in range(oldest, current_step + 1)]
    other.files.delete()
    assert not list(tmp_path.glob("*.bin"))


def test_sampled_transitions_come_from_the_environments(build_task):
    """Frames, rewards and episode ends agree with the rules of Catch."""
    task, data = build_task(num_envs=2, train_frequency=2)
    train = data.train
    sampled = []
    batches = task.iterate_batches(train)
    for _ in range(30):
        batch = next(batches)
        assert batch.frames.shape == (32, 5, 84, 84)
        sampled.append(batch)
    terminated = torch.cat([batch.not_terminated for batch in sampled]) == 0
    rewards = torch.cat([batch.rewards for batch in sampled])
    assert (rewards[terminated].abs() == 1).all()
    assert (rewards[~terminated] == 0).all()
    # before a ball lands it is in the row above the paddle
    last_frames = torch.cat([batch.frames[:, 3] for batch in sampled])[terminated]
    assert (last_frames[:, -12:-6] == 255).flatten(1).any(1).all()
    assert train.epsilon == pytest.approx(1 + (0.05 - 1) * min((train.num_vector_steps * 2 - 160) / 100, 1))


class EnvWithLives:
    """Environment with 12 steps per episode, rewards of 1, the step number as frame, and life losses at 4 and 8."""

    action_names, frame_shape = ("left", "right"), (2, 2)

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def reset(self, mask, seeds):
        self.steps = np.where(mask, 0, self.steps) if hasattr(self, "steps") else np.zeros(self.num_envs, np.int64)
        return self.build_step_result(np.zeros(self.num_envs))

    def send(self, actions):
        self.steps = self.steps + 1

    def receive(self):
        return self.build_step_result(np.ones(self.num_envs))

    def build_step_result(self, rewards):
        frames = np.repeat(self.steps, 4).reshape(-1, 2, 2).astype(np.uint8)
        return vector_env.StepResult(
            frames, rewards.astype(np.float32), self.steps == 12, self.steps > 12, np.isin(self.steps, (4, 8))
        )

    def close(self):
        pass


def build_collector(envs):
    """Build the collector of random actions in environments with 12 steps per episode."""
    collector = ExperienceCollector(
        envs,
        batch_size=200,
        frame_stack=2,
        buffer_size=1000,
        learning_starts=0,
        train_frequency=1,
        exploration_steps=1,
        epsilon_start=1,
        epsilon_end=1,
        seed=0,
    )
    collector.setup(Runtime.start("cpu", "float32"))
    return collector


def test_a_lost_life_terminates_transitions_but_not_the_episode():
    collector = build_collector(EnvWithLives(2))
    for _ in range(60):
        collector.collect(lambda states: torch.zeros(2, dtype=torch.long))
    batch = collector.sample_batch()
    step = batch.frames[:, 1, 0, 0]  # before the action
    assert {*step.tolist()} == {*range(12)}
    assert torch.equal(batch.not_terminated == 0, torch.isin(step, torch.tensor([3, 7, 11])))
    assert (batch.not_truncated == 1).all()
    assert collector.recent_returns == [12.0] * 8  # four complete episodes in each of two environments


def test_an_episode_of_the_maximum_length_is_truncated_and_not_terminated():
    class TimeLimit(EnvWithLives):
        def build_step_result(self, rewards):
            result, none = super().build_step_result(rewards), np.zeros(self.num_envs, bool)
            return result._replace(terminated=none, truncated=self.steps == 12, life_lost=none)

    collector = build_collector(TimeLimit(2))
    for _ in range(60):
        collector.collect(lambda states: torch.zeros(2, dtype=torch.long))
    batch = collector.sample_batch()
    assert torch.equal(batch.not_truncated == 0, batch.frames[:, 1, 0, 0] == 11)
    assert (batch.not_terminated == 1).all()
    assert collector.recent_returns == [12.0] * 8


def test_evaluation_episodes_continue_after_a_lost_life():
    episodes = EvaluationEpisodes(EnvWithLives, (0, 1, 2), 2, 0.0)
    assert episodes.run(lambda states: torch.zeros(3, 2))[:2] == ([12.0] * 3, [12] * 3)


def test_metrics_of_episodes():
    """The mean Q value is over the states of episodes that have not ended."""
    metrics = EpisodeResults([1.0, 3.0], [10, 20], 0.25).compute_metrics()
    assert metrics == {"return": 2, "return_deviation": 1, "length": 15, "q_value": 0.25, "count": 2}

    class Lengths(EnvWithLives):
        def build_step_result(self, rewards):
            return super().build_step_result(rewards)._replace(terminated=self.steps >= np.array([4, 8, 12]))

    values = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    returns, lengths, q_value = EvaluationEpisodes(Lengths, (0, 1, 2), 2, 0.0).run(lambda states: values)
    assert (returns, lengths) == ([4.0, 8.0, 12.0], [4, 8, 12])
    assert q_value == pytest.approx((4 * 1 + 8 * 2 + 12 * 3) / 24)


def test_evaluation_has_the_papers_epsilon():
    """30 episodes with epsilon 0.05; half of the random actions are the greedy one of two."""
    episodes = DQN().load_eval_data().val
    assert (len(episodes), episodes.epsilon) == (30, 0.05)

    class RecordingEnv(EnvWithLives):
        def send(self, actions):
            sent.append(actions.mean())
            super().send(actions)

    for epsilon, fraction in ((0.0, 0.0), (0.2, 0.1), (1.0, 0.5)):
        sent = []
        EvaluationEpisodes(RecordingEnv, tuple(range(500)), 2, epsilon).run(
            lambda states: torch.tensor([[1.0, 0.0]]).expand(len(states), 2)
        )
        assert np.mean(sent) == pytest.approx(fraction, abs=0.02)


@pytest.mark.parametrize("double", [False, True])
def test_loss_equals_a_plain_computation(build_task, double):
    """Huber's loss of the value and its target, transition by transition."""
    task, data = build_task(double=double)
    batches = task.iterate_batches(data.train)
    for _ in range(5):
        task.step(next(batches))
    batch = next(batches)
    batch = batch._replace(rewards=batch.rewards * 3, not_truncated=(torch.arange(32) != 4).float())
    loss, metrics = task.compute_loss(batch)
    total = 0.0
    with torch.no_grad():
        for index in range(32):
            state, next_state = batch.frames[index, :4][None], batch.frames[index, 1:][None]
            value = task.model(state)[0, batch.actions[index]]
            next_action = (task.model if double else task.target_network)(next_state)[0].argmax()
            next_value = task.target_network(next_state)[0, next_action]
            reward = max(-1.0, min(1.0, batch.rewards[index].item()))
            error = abs(value - (reward + 0.99 * batch.not_terminated[index] * next_value))
            total += float(0 if index == 4 else 0.5 * error**2 if error < 1 else error - 0.5)
    assert loss.item() == pytest.approx(total / 32, rel=1e-4)
    assert metrics["epsilon"] == pytest.approx(data.train.epsilon)


def test_target_network_changes_only_at_its_update_interval(build_task):
    task, data = build_task(target_update_interval=3)
    batches = task.iterate_batches(data.train)
    for step in range(7):
        batch = next(batches)
        if step % 3 == 0:
            copied = {name: value.clone() for name, value in task.model.state_dict().items()}
        task.step(batch)
        for name, value in task.target_network.state_dict().items():
            assert torch.equal(value, copied[name])
    assert any(not torch.equal(value, copied[name]) for name, value in task.model.state_dict().items())


def test_train_frequency_does_not_depend_on_the_number_of_environments(build_task):
    for count, frequency in ((1, 4), (4, 4), (8, 4), (2, 1), (3, 4)):
        task, data = build_task(num_envs=count, train_frequency=frequency, steps=800, learning_starts=320)
        batches = task.iterate_batches(data.train)
        for _ in range(20):
            next(batches)
        error = abs(data.train.num_vector_steps * count - 320 - 20 * frequency)
        assert error <= max(count, frequency), (count, frequency)


def test_double_learning_and_rmsprop_train(build_task):
    for fields in ({"double": True}, {"optimizer": "rmsprop"}, {"clip_rewards": False}):
        task, data = build_task(**fields)
        batches = task.iterate_batches(data.train)
        losses = [task.step(next(batches))["loss"].item() for _ in range(5)]
        assert all(np.isfinite(losses))


def test_rmsprop_equals_deepminds_code():
    """Twelve steps of NeuralQLearner.lua's formula in NumPy, with gradients of many sizes and two learning rates."""
    random = np.random.default_rng(0)
    weights = [random.normal(size=shape) for shape in ((3, 2), (4,))]
    parameters = [nn.Parameter(torch.tensor(weight)) for weight in weights]
    factory = DQN(optimizer="rmsprop", lr=1e-3).get_optimizer_factory()
    optimizer = Runtime.start("cpu", "float32").prepare_optimizer(factory(parameters))
    means, squares, lr = [0.0, 0.0], [0.0, 0.0], 1e-3
    for step in range(12):
        if step == 6:
            lr /= 2
            optimizer.param_groups[0]["lr"].fill_(lr)
        for i, parameter in enumerate(parameters):
            gradient = random.normal(size=weights[i].shape) * 10.0 ** random.integers(-4, 2, weights[i].shape)
            parameter.grad = torch.tensor(gradient)
            means[i] = 0.95 * means[i] + 0.05 * gradient
            squares[i] = 0.95 * squares[i] + 0.05 * gradient**2
            weights[i] = weights[i] - lr * gradient / np.sqrt(squares[i] - means[i] ** 2 + 0.01)
        optimizer.step()
        for parameter, weight in zip(parameters, weights, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-6)


def test_rmsprop_step_of_a_small_gradient_is_ten_times_the_gradient():
    """The square root of 0.01 is 0.1; with the constant outside of the root, the factor would be 100."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.full((1,), 1e-6)
    DQN(optimizer="rmsprop", lr=1.0).get_optimizer_factory()([weight]).step()
    assert weight.item() == pytest.approx(-1e-5, rel=1e-4)


def test_rmsprop_is_finite_for_large_constant_gradients():
    """Rounding may make their variance negative."""
    weight = nn.Parameter(torch.zeros(1000))
    optimizer = DQN(optimizer="rmsprop").get_optimizer_factory()([weight])
    weight.grad = torch.linspace(1e3, 1e5, 1000)
    for _ in range(300):
        optimizer.step()
        assert weight.isfinite().all()


def test_rmsprop_resumes_from_its_state_dict_bit_for_bit():
    def step(parameter, optimizer, seeds):
        for seed in seeds:
            parameter.grad = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    factory = DQN(optimizer="rmsprop").get_optimizer_factory()
    uninterrupted, first, second = (nn.Parameter(torch.ones(5, 4)) for _ in range(3))
    step(uninterrupted, factory([uninterrupted]), range(6))
    optimizer = factory([first])
    step(first, optimizer, range(3))
    other = factory([second])
    other.load_state_dict(optimizer.state_dict())
    second.data.copy_(first.data)
    step(second, other, range(3, 6))
    assert torch.equal(second, uninterrupted)


@pytest.mark.parametrize(("optimizer", "factor"), [("rmsprop", 1), ("adam", 1 / 32)])
def test_loss_is_the_sum_with_rmsprop_and_the_mean_with_adam(build_task, optimizer, factor):
    """The gradient of the last layer's bias is the sum or mean of the value errors, each clipped to -1..1."""
    task, data = build_task(optimizer=optimizer, clip_rewards=False)
    batches = task.iterate_batches(data.train)
    next(batches)
    batch = next(batches)
    batch = batch._replace(rewards=torch.linspace(-3, 3, 32))
    task.optimizer.zero_grad()
    task.compute_loss(batch)[0].backward()
    with torch.no_grad():
        values = task.model(batch.frames[:, :-1]).gather(1, batch.actions[:, None])[:, 0]
        targets = batch.rewards + 0.99 * batch.not_terminated * task.target_network(batch.frames[:, 1:]).amax(1)
    errors = (values - targets).clamp(-1, 1)
    assert 0 < (errors.abs() == 1).sum() < 32
    expected = torch.zeros(3).index_add(0, batch.actions, errors)
    torch.testing.assert_close(task.model.values.bias.grad, factor * expected, rtol=1e-4, atol=1e-6)


def test_learning_rate_schedule(build_task):
    task, _ = build_task(schedule="polynomial")
    assert [task.schedule(progress) for progress in (0.0, 0.5, 0.9)] == pytest.approx([2.5e-4, 1.25e-4, 2.5e-5])
    assert task.optimizer.param_groups[0]["lr"].item() == pytest.approx(2.5e-5)


def test_evaluation_has_no_side_effects(build_task):
    task, data = build_task()
    before = torch.get_rng_state()
    first = task.evaluate(data.val)
    assert task.evaluate(data.val) == first
    assert first["count"] == 4
    assert -1 <= first["return"] <= 1
    assert first["length"] == GRID_SIZE - 1
    assert torch.equal(torch.get_rng_state(), before)
    assert [title for title, _ in task.plot_evaluation(data.val)]


@pytest.mark.slow
def test_killed_and_resumed_training_is_exact(tmp_path):
    """After repeated SIGKILL, the final weights are the same bit for bit."""
    small = {**SMALL, "steps": 1200, "buffer_size": 300}
    check_task.check_killed_and_resumed(lambda **fields: DQN(**small), tmp_path)


def test_several_seeds_have_a_mean(fukami, tmp_path):
    """An agent has no ensemble, so the last line is the mean of the runs."""
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = fukami("train", "dqn", *options, "--num-seeds", 2, "--device", "cpu", "--out", tmp_path / "runs")
    assert result.status == 0, result.err
    first, second, last = result.json
    assert last["runs"] == [first["run"], second["run"]]
    assert last["mean"]["return"] == pytest.approx((first["return"] + second["return"]) / 2)
    assert last["standard_deviation"]["return"] == pytest.approx(abs(first["return"] - second["return"]) / 2**0.5)


def test_actions_are_random_before_the_training(build_task):
    _, data = build_task(epsilon_start=0.1)
    train, policy_calls = data.train, []

    def policy(states):
        policy_calls.append(len(states))
        return torch.zeros(len(states), dtype=torch.long)

    assert train.epsilon == 1
    while train.num_vector_steps * train.envs.num_envs < train.learning_starts:
        train.collect(policy)
    assert not policy_calls
    assert train.epsilon == pytest.approx(0.1)


def test_values_of_many_episodes_are_predicted_in_parts(monkeypatch):
    sizes = []
    episodes = DQN(eval_episodes=600).build_episodes()

    def predict_values(states):
        sizes.append(len(states))
        return torch.zeros(len(states), 3)

    returns, _, _ = episodes.run(predict_values)
    assert len(returns) == 600
    assert sizes[:3] == [256, 256, 88]
    with pytest.raises(UsageError, match="--eval-episodes times --frame-stack is 320,000"):
        DQN(eval_episodes=10_000, frame_stack=32, buffer_size=10_000)


def test_options_and_fields_of_an_agents_video(fukami, tmp_path, monkeypatch):
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert fukami("train", "dqn", *options, "--device", "cpu", "--out", tmp_path / "run").status == 0
    episodes, recipes, collect, build = [], [], QLearningTask.collect_results, DQN.build_episodes
    monkeypatch.setattr(
        QLearningTask,
        "collect_results",
        lambda task, *arguments: episodes.append(arguments[0]) or collect(task, *arguments),
    )
    monkeypatch.setattr(
        DQN, "build_episodes", lambda recipe, **options: recipes.append(recipe) or build(recipe, **options)
    )
    play = ("play", tmp_path / "run", "--out", "game.gif")
    arguments = ("--epsilon", "0.5", "--seed", "7", "--episodes", "2", "--max-seconds", "0.4", "--set", "gamma=0.5")
    result = fukami(*play, *arguments)
    assert result.status == 0, result.err
    assert [(one.epsilon, one.seeds) for one in episodes] == [(0.5, (7,)), (0.5, (8,))]
    assert [recipe.gamma for recipe in recipes] == [0.5, 0.5]
    assert result.json[0]["frames"] == 6  # of 0.4 seconds at 15 frames per second
    rejected = fukami(*play, "--set", "eval_epsilon=0.5")
    assert rejected.status == 2
    assert "use --epsilon" in rejected.err


@pytest.mark.parametrize("name", ["num_vector_steps", "num_optimizer_steps", "current_step"])
def test_a_checkpoint_of_the_collector_is_validated(build_task, name):
    _, data = build_task()
    with pytest.raises(ValueError, match=f"{name} should be an integer from 0"):
        data.train.load_state_dict(data.train.state_dict() | {name: -1})


def test_the_buffer_of_an_evaluation_has_only_the_frames_of_the_states():
    buffer = ReplayBuffer(3, (84, 84), 4, is_saved=False)
    assert buffer.num_slots == 4


def test_command_line(fukami, tmp_path):
    """Train, resume, evaluate and play; the files of the replay buffer are deleted after training."""
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = fukami("train", "dqn", *options, "--device", "cpu", "--out", tmp_path / "run")
    assert result.status == 0, result.err
    assert not (tmp_path / "run" / "replay_buffer").exists()
    assert {"return", "length", "q_value", "count"} <= result.json[-1].keys()
    train_metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().partition("\n")[0])
    assert {"return", "q_value", "epsilon", "steps_per_second"} <= train_metrics.keys()
    resumed = fukami("train", "dqn", "--resume", "--out", tmp_path / "run", "--device", "cpu")
    assert resumed.status == 0, resumed.err
    assert resumed.json[-1]["return"] == result.json[-1]["return"]
    evaluation = fukami("eval", tmp_path / "run", "--device", "cpu", "--set", "eval_episodes=6")
    assert evaluation.json[0]["count"] == 6
    gif = fukami("play", tmp_path / "run", "--out", tmp_path / "game.gif", "--device", "cpu")
    assert gif.status == 0, gif.err
    assert gif.json[0]["lengths"] == [GRID_SIZE - 1]
    with Image.open(tmp_path / "game.gif") as image:
        assert image.n_frames > 1
    mp4 = fukami("play", tmp_path / "run", "--out", tmp_path / "game.mp4", "--episodes", "2", "--device", "cpu")
    assert mp4.json[0]["frames"] == 2 * (GRID_SIZE - 1)
    assert (tmp_path / "game.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["play", "deep-convnet", "--out", "x.gif"], "is not the run of an agent"),
        (["play", "deep-convnet", "--out", "x.png"], ".mp4, .gif or .webp"),
        (["play", "deep-convnet", "--out", "no/x.gif"], "the folder no of the video does not exist"),
        (["play", "deep-convnet", "--out", "x.gif", "--episodes", "0"], "at least 1"),
        (["train", "dqn", "--learning-starts", "10"], "learning-starts should be"),
        (["train", "dqn", "--steps", "100"], "steps should be"),
        (["train", "dqn", "--schedule", "linear"], "unknown schedule 'linear'"),
    ],
)
def test_usage_errors(fukami, arguments, hint):
    result = fukami(*arguments)
    assert result.status == 2
    assert hint in result.err


def test_predict_image_files(build_task, tmp_path):
    task, _ = build_task()
    Image.fromarray(Catch(1).render(0)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    good, bad = task.predict([tmp_path / "a.png", tmp_path / "b.png"])
    assert json.loads(json.dumps(good)) == good
    assert good["action"] == max(good["values"], key=good["values"].get)
    gray = Image.open(tmp_path / "a.png").convert("L").resize(task.state_shape[:0:-1], Image.Resampling.BOX)
    frames = torch.from_numpy(np.array(gray)).expand(1, *task.state_shape)
    with torch.inference_mode():
        expected = task.predict_values(frames)[0]
    assert list(good["values"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert "b.png" in bad["error"]
    assert task.draw(image_io.read_image(tmp_path / "a.png"), good).size[1] == 420


ATARI = pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs the extra: pip install '.[atari]'")


@ATARI
@pytest.mark.parametrize(
    "name", ["ALE/UpNDown-v5", "UpNDownNoFrameskip-v4", "ALE/TicTacToe3D-v5", "MsPacman-v4", "up_n_down"]
)
def test_names_of_atari_games(name):
    env_registry.make_envs(name, 1).close()


@ATARI
def test_atari_frames_are_preprocessed_as_in_the_paper():
    """84×84 grayscale frames equal the downsampled color frames of a second, synchronous emulator."""
    envs = env_registry.make_envs("ALE/Pong-v5", 1, render=True)
    assert envs.action_names == ("noop", "fire", "right", "left", "rightfire", "leftfire")
    result = envs.reset(np.ones(1, bool), np.array([3]))
    assert result.frames.shape == (1, 84, 84)
    for step in range(40):
        envs.send(np.array([step % 6]))
        result = envs.receive()
        image = Image.fromarray(envs.render(0))
        assert image.size == (160, 210)
        grayscale = np.asarray(image.convert("L").resize((84, 84), Image.Resampling.BOX), int)
        assert np.abs(grayscale - result.frames[0]).mean() < 3
    envs.close()


@ATARI
def test_atari_episodes_start_with_up_to_30_noops():
    """The emulator's frame number depends on the seed, and so does the first frame of Breakout."""
    envs = env_registry.make_envs("breakout", 1)
    reset, counts = envs.envs.reset, []
    envs.envs.reset = lambda **options: (
        result := reset(**options),
        counts.append(result[1]["episode_frame_number"][0]),
    )[0]
    first = [envs.reset(np.ones(1, bool), np.array([seed])).frames.copy() for seed in (*range(24), 0)]
    envs.close()
    assert min(counts) < 6
    assert 20 < max(counts) <= 30
    assert len(np.unique(np.concatenate(first).reshape(25, -1), axis=0)) == len({*counts}) > 10
    assert np.array_equal(first[0], first[-1])


@ATARI
@pytest.mark.parametrize("name", ["breakout", "ms_pacman"])
def test_at_most_30_frames_precede_an_atari_episode(name):
    """Extended data table 1: no-op max. Breakout has a fire button, Ms. Pac-Man has none."""
    envs = env_registry.make_envs(name, 1)
    count, seed = 0, 40
    while count < 30 and seed < 240:  # seed 45 has 30 frames
        _, info = envs.envs.reset(seed=np.array([seed]))
        count, seed = int(info["episode_frame_number"][0]), seed + 1
    envs.close()
    assert count == 30


@ATARI
def test_atari_actions_last_four_frames_without_sticky_actions():
    """Rewards, not clipped, equal those of an emulator stepped frame by frame."""
    import gymnasium

    envs = env_registry.make_envs("ms_pacman", 1)
    reset, counts = envs.envs.reset, []
    envs.envs.reset = lambda **options: (
        result := reset(**options),
        counts.append(result[1]["episode_frame_number"][0]),
    )[0]
    envs.reset(np.ones(1, bool), np.array([3]))
    reference = gymnasium.make("ALE/MsPacman-v5", frameskip=1, repeat_action_probability=0.0)
    reference.reset(seed=0)
    while reference.unwrapped.ale.getEpisodeFrameNumber() < counts[0]:
        reference.step(0)
    rewards = []
    for action in np.random.default_rng(0).integers(len(envs.action_names), size=120):
        envs.send(np.array([action]))
        rewards.append((float(envs.receive().rewards[0]), sum(reference.step(action)[1] for _ in range(4))))
    envs.close()
    reference.close()
    assert all(ours == theirs for ours, theirs in rewards)
    assert max(ours for ours, _ in rewards) == 10  # reward of a pellet


@ATARI
def test_life_lost_of_an_atari_game():
    """Four of the five lives of Breakout end with life_lost; the fifth ends the episode."""
    envs = env_registry.make_envs("breakout", 1)
    envs.reset(np.ones(1, bool), np.array([0]))
    receive, lives, life_lost = envs.envs.recv, [5], []
    envs.envs.recv = lambda: (result := receive(), lives.append(int(result[4]["lives"][0])))[0]
    for _ in range(2000):
        envs.send(np.array([1]))  # the fire button launches the ball
        result = envs.receive()
        life_lost.append(bool(result.life_lost[0]))
        if result.terminated[0]:
            break
    envs.close()
    decreased = [after < before for before, after in itertools.pairwise(lives)]
    assert sum(decreased) == 5
    assert lives[-1] == 0
    assert life_lost == [*decreased[:-1], False]


@ATARI
@pytest.mark.parametrize("name", ["breakout", "CartPole-v1"])
def test_resumed_collector_continues_exactly(name, tmp_path):
    """The environments, reset at different times, are replayed to their states; the next steps are the same."""

    def build_collector():
        return ExperienceCollector(
            env_registry.make_envs(name, 3),
            batch_size=8,
            frame_stack=4,
            buffer_size=3000,
            learning_starts=0,
            train_frequency=3,
            exploration_steps=1,
            epsilon_start=1,
            epsilon_end=0.5,
            seed=1,
        )

    def policy(states):
        return states.flatten(1).float().sum(1).long() % 2

    one = build_collector()
    one.open_files(tmp_path)
    one.setup(Runtime.start("cpu", "float32"))
    for _ in range(130):
        one.collect(policy)
    state = one.state_dict()
    lengths = [len(actions) for actions in state["episode_actions"]]
    assert max(lengths) > min(lengths) or name == "breakout"
    other = build_collector()
    other.open_files(tmp_path)
    other.setup(Runtime.start("cpu", "float32"))
    other.load_state_dict(state)
    results = []
    for collector in (other, one):  # both write the same values to the same files
        for _ in range(60):
            collector.collect(policy)
        results.append(
            (
                collector.get_states().clone(),
                [list(actions) for actions in collector.episode_actions],
                list(collector.recent_returns),
                collector.sample_batch(),
            )
        )
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:3] == results[1][1:3]
    assert all(torch.equal(a, b) for a, b in zip(results[0][3], results[1][3], strict=True))


@ATARI
def test_training_on_cartpole_raises_the_return(build_task):
    """The return of a random policy is about 20."""
    options = {"steps": 6_000, "buffer_size": 6_000, "learning_starts": 500, "hidden": 64}
    options["exploration_fraction"] = 1 / 3
    task, data = build_task(
        env="CartPole-v1",
        lr=1e-3,
        target_update_interval=100,
        train_frequency=2,
        num_envs=2,
        eval_episodes=10,
        **options,
    )
    assert task.evaluate(data.val)["return"] < 50
    for _, batch in zip(range(task.epochs), task.iterate_batches(data.train), strict=False):
        task.step(batch)
    assert task.evaluate(data.val)["return"] > 70


@ATARI
def test_vector_observations(build_task):
    task, data = build_task(env="CartPole-v1", num_envs=2)
    assert task.labels == ("0", "1")
    batches = task.iterate_batches(data.train)
    assert np.isfinite(task.step(next(batches))["loss"].item())
    assert task.evaluate(data.val)["length"] > 5
    with pytest.raises(UsageError, match="are vectors, not images; run it with fukami play"):
        task.predict([np.zeros((84, 84), np.uint8)])


@ATARI
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ponk", "did you mean 'pong'"),
        ("Pendulum-v1", "choose an environment with discrete actions"),
        ("Blackjack-v1", "choose an environment with images or vectors"),
    ],
)
def test_unsupported_environments_are_errors(name, hint):
    with pytest.raises(UsageError, match=hint):
        env_registry.make_envs(name, 1)
