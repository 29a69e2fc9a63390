"""Deep Q-network: games, memory, updates, and playing on after a kill."""

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
from fukami.reinforcement import env_registry, vector_env
from fukami.reinforcement.catch import GRID_SIZE, PADDLE_WIDTH, Catch
from fukami.reinforcement.dqn import DQN
from fukami.reinforcement.evaluation import EvaluationEpisodes
from fukami.reinforcement.replay import ExperienceCollector, ReplayBuffer

SMALL = {
    "steps": 400,
    "learning_starts": 160,
    "buffer_size": 400,
    "exploration_steps": 100,
    "hidden": 16,
    "eval_episodes": 4,
    "eval_every": 120,
}


@pytest.fixture
def begun():
    """A task at its beginning, and its data."""

    def make(**fields):
        recipe = DQN(**SMALL | fields)
        data = recipe.load_data()
        torch.manual_seed(0)
        task = recipe.build_task(data.labels)
        runtime = Runtime.start("cpu", "float32")
        data.train.setup(runtime)
        task.setup(runtime)
        return task, data

    return make


def test_the_papers_network():
    """Extended data table 1; 1,693,362 parameters with 18 actions, counted by hand."""
    network = models.dqn()
    convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    assert [(each.out_channels, each.kernel_size[0], each.stride[0]) for each in convolutions] == [
        (32, 8, 4), (64, 4, 2), (64, 3, 1),
    ]  # fmt: skip
    by_hand = (4 * 64 * 32 + 32) + (32 * 16 * 64 + 64) + (64 * 9 * 64 + 64) + (3136 * 512 + 512) + (512 * 18 + 18)
    assert sum(parameter.numel() for parameter in network.parameters()) == by_hand
    assert network(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape == (2, 18)
    assert models.dqn(3, state_shape=(8,))(torch.zeros(2, 4, 2)).shape == (2, 3)
    with pytest.raises(ValueError, match="at least 36×36"):
        models.dqn(state_shape=(4, 20, 20))
    with pytest.raises(ValueError, match="or a vector"):
        models.dqn(state_shape=(4, 20))


def test_in_mixed_precision_values_are_finer_than_half():
    torch.manual_seed(0)
    network, states = models.dqn(), torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    network.values.reset_parameters()  # they would be too close to 0 to be told from it
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        values = network(states)
    assert values.dtype == torch.float32
    assert (values != values.bfloat16()).any()
    with torch.inference_mode():
        torch.testing.assert_close(values, network(states), rtol=0.02, atol=0.01)


def test_images_are_standardised():
    """What an untrained network sees of frames has the mean 0 everywhere and the variance 1, whatever they show."""
    torch.manual_seed(0)
    network, seen = models.dqn(state_shape=(1, 40, 36)), []
    network.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    frames = (torch.rand(40, 36) * 200 + torch.rand(30, 40, 36) * 50).byte()
    network.fit_input_statistics(frames)
    network(frames.unsqueeze(1))
    assert seen[0].mean(0).abs().max() < 1e-4
    assert seen[0].square().mean().item() == pytest.approx(1, rel=1e-4)
    assert frames.dtype == torch.uint8
    network.fit_input_statistics(torch.full((2, 40, 36), 7))
    assert network(frames.unsqueeze(1)).isfinite().all()


def test_it_is_standardised_by_what_was_played_by_chance(begun):
    task, data = begun()
    assert task.model.deviation == 255
    next(task.iterate_batches(data.train))
    memory = data.train.buffer
    frames = memory.tensors["frames"][: memory.current_step + 1].flatten(0, 1).float()
    torch.testing.assert_close(task.model.mean, frames.mean(0))
    assert torch.equal(task.target_network.mean, task.model.mean)
    assert torch.equal(task.target_network.deviation, task.model.deviation)
    assert task.model.deviation < 100


def test_a_perfect_player_catches_every_ball():
    """One that knows where the ball will land; so 1 is the optimum."""
    count = 200
    game = Catch(count)
    game.reset(np.ones(count, bool), np.arange(count))
    total = np.zeros(count)
    for _ in range(GRID_SIZE - 1):
        target = _landing(game)
        middle = game.paddle + PADDLE_WIDTH // 2
        game.send(np.where(target < middle, 1, np.where(target > middle, 2, 0)))
        seen = game.receive()
        total += seen.rewards
    assert seen.terminated.all()
    assert (total == 1).all()


def test_what_the_best_player_wins_where_a_twentieth_is_by_chance():
    """By backward induction over all that can be seen: what docs/landmarks/dqn.md says."""
    columns, drifts, paddles = (each.ravel() for each in np.mgrid[:GRID_SIZE, -1:2, : GRID_SIZE - PADDLE_WIDTH + 1])
    game = Catch(len(columns))
    value = np.zeros((GRID_SIZE, 3, GRID_SIZE - PADDLE_WIDTH + 1))
    for row in reversed(range(GRID_SIZE - 1)):
        worth = np.zeros((len(game.action_names), len(columns)))
        for action in range(len(worth)):
            game.ball = np.stack([columns, np.full(len(columns), row)], 1)
            game.drift, game.paddle = drifts, paddles
            game.send(np.full(len(columns), action))
            worth[action] = game.receive().rewards + value[game.ball[:, 0], game.drift + 1, game.paddle]
        value = (0.95 * worth.max(0) + 0.05 * worth.mean(0)).reshape(value.shape)
    assert value.mean() == pytest.approx(0.992, abs=5e-4)


def _landing(game):
    """The column where each ball will land, by reflection."""
    left = GRID_SIZE - 1 - game.ball[:, 1]
    period = 2 * (GRID_SIZE - 1)
    place = np.mod(game.ball[:, 0] + game.drift * left, period)
    return np.where(place < GRID_SIZE, place, period - place)


def test_the_same_seed_is_the_same_ball():
    one, other = Catch(3), Catch(3)
    for game in (one, other):
        game.reset(np.ones(3, bool), np.array([5, 6, 7]))
    one.reset(np.array([False, True, False]), np.array([0, 6, 0]))
    assert np.array_equal(one.ball, other.ball)
    assert np.array_equal(one.render(1), other.render(1))


def test_memory_gives_back_what_was_seen():
    """States and what followed, against lists by hand; before an episode there is its first frame."""
    memory = ReplayBuffer(2, (3, 3), capacity=6)
    memory.allocate(torch.device("cpu"))
    begins = {0: {0, 4}, 1: {0, 6, 7}}
    for step in range(9):
        frames = torch.stack([torch.full((3, 3), 10 * step + game + 1, dtype=torch.uint8) for game in range(2)])
        memory.add(frames, torch.tensor([step in begins[game] for game in range(2)]))
    for game in range(2):
        for step in range(4, 8):
            found = memory.stack_frames(torch.tensor([step]), torch.tensor([game]), 4, num_next_frames=1)[
                0, :, 0, 0
            ].tolist()
            start = max(begin for begin in begins[game] if begin <= step)
            expected = [10 * max(at, start) + game + 1 for at in range(step - 3, step + 1)]
            assert found == [*expected, 10 * (step + 1) + game + 1]


def test_each_frame_is_stored_once():
    """A million steps of the paper's frames take 7 GB, and not 28."""
    assert ReplayBuffer(4, (84, 84), 250_000).num_bytes < 1.06 * 7.1e9


def test_memory_in_files_is_found_again(tmp_path):
    """By another object; and what a checkpoint remembers is not written over within the slack."""
    one = ReplayBuffer(1, (2, 2), capacity=10)
    one.open_files(tmp_path)
    one.allocate(torch.device("cpu"))
    for step in range(300):
        one.add(torch.full((1, 2, 2), step % 251, dtype=torch.uint8), torch.tensor([step == 0]))
    then, oldest = one.current_step, one.find_oldest_step()
    for step in range(300, 300 + one.slack):
        one.add(torch.full((1, 2, 2), step % 251, dtype=torch.uint8), torch.tensor([False]))
    other = ReplayBuffer(1, (2, 2), capacity=10)
    other.open_files(tmp_path)
    other.allocate(torch.device("cpu"))
    other.current_step = then
    steps = torch.arange(oldest, then + 1)
    found = other.stack_frames(steps, torch.zeros_like(steps), 1)[:, 0, 0, 0]
    assert found.tolist() == [step % 251 for step in range(oldest, then + 1)]
    other.delete_files()
    assert not list(tmp_path.glob("*.bin"))


def test_lessons_are_moments_that_were(begun):
    """Of games whose frames, rewards and ends are known."""
    task, data = begun(num_envs=2, train_frequency=2)
    train = data.train
    moments = []
    batches = task.iterate_batches(train)
    for _ in range(30):
        lesson = next(batches)
        assert lesson.frames.shape == (32, 5, 84, 84)
        moments.append(lesson)
    ended = torch.cat([lesson.not_terminated for lesson in moments]) == 0
    rewards = torch.cat([lesson.rewards for lesson in moments])
    assert (rewards[ended].abs() == 1).all()
    assert (rewards[~ended] == 0).all()
    # before a ball lands it is in the row above the paddle's: the paddle is all there is in the last row
    last = torch.cat([lesson.frames[:, 3] for lesson in moments])[ended]
    assert (last[:, -12:-6] == 255).flatten(1).any(1).all()
    assert train.epsilon == pytest.approx(1 + (0.05 - 1) * min((train.num_vector_steps * 2 - 160) / 100, 1))


class Lives:
    """A game of twelve steps, each worth 1, whose frames are the number of the step; lives are lost at 4 and 8."""

    action_names, frame_shape = ("left", "right"), (2, 2)

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def reset(self, mask, seeds):
        self.at = np.where(mask, 0, self.at) if hasattr(self, "at") else np.zeros(self.num_envs, np.int64)
        return self.seen(np.zeros(self.num_envs))

    def send(self, actions):
        self.at = self.at + 1

    def receive(self):
        return self.seen(np.ones(self.num_envs))

    def seen(self, rewards):
        frames = np.repeat(self.at, 4).reshape(-1, 2, 2).astype(np.uint8)
        return vector_env.StepResult(
            frames, rewards.astype(np.float32), self.at == 12, self.at > 12, np.isin(self.at, (4, 8))
        )

    def close(self):
        pass


def test_a_lost_life_is_an_end_where_it_is_learned_from_and_not_of_the_episode():
    experience = ExperienceCollector(
        Lives(2),
        batch_size=200,
        frame_stack=2,
        buffer_size=1000,
        learning_starts=0,
        train_frequency=1,
        exploration_steps=1,
        epsilon_end=1,
        seed=0,
    )
    experience.setup(Runtime.start("cpu", "float32"))
    for _ in range(60):
        experience.collect(lambda states: torch.zeros(2, dtype=torch.long))
    lesson = experience.sample_batch()
    step = lesson.frames[:, 1, 0, 0]  # before the action
    assert {*step.tolist()} == {*range(12)}
    assert torch.equal(lesson.not_terminated == 0, torch.isin(step, torch.tensor([3, 7, 11])))
    assert (lesson.not_truncated == 1).all()
    assert experience.recent_returns == [12.0] * 8  # two games, four whole episodes of each


def test_an_evaluation_plays_whole_games_whatever_lives_are_lost():
    trials = EvaluationEpisodes(Lives, (0, 1, 2), 2, 0.0)
    assert trials.run(lambda states: torch.zeros(3, 2))[:2] == ([12.0] * 3, [12] * 3)


def test_evaluations_take_a_twentieth_of_the_actions_by_chance():
    """In 30 episodes, as in the paper; of a random action in two, half are the other one."""
    found = DQN().load_eval_data()
    assert (len(found), found.epsilon) == (30, 0.05)

    class Counted(Lives):
        def send(self, actions):
            sent.append(actions.mean())
            super().send(actions)

    for epsilon, share in ((0.0, 0.0), (0.2, 0.1), (1.0, 0.5)):
        sent = []
        EvaluationEpisodes(Counted, tuple(range(500)), 2, epsilon).run(
            lambda states: torch.tensor([[1.0, 0.0]]).expand(500, 2)
        )
        assert np.mean(sent) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("double", [False, True])
def test_the_loss_by_hand(begun, double):
    """Moment for moment: Huber's loss of the value said against the reward and the discounted best of the target."""
    task, data = begun(double=double)
    batches = task.iterate_batches(data.train)
    for _ in range(5):
        task.step(next(batches))
    lesson = next(batches)
    lesson = lesson._replace(rewards=lesson.rewards * 3, not_truncated=(torch.arange(32) != 4).float())
    found, more = task.compute_loss(lesson)
    total = 0.0
    with torch.no_grad():
        for number in range(32):
            state, later = lesson.frames[number, :4][None], lesson.frames[number, 1:][None]
            said = task.model(state)[0, lesson.actions[number]]
            chosen = (task.model if double else task.target_network)(later)[0].argmax()
            worth = task.target_network(later)[0, chosen]
            goal = max(-1.0, min(1.0, lesson.rewards[number].item())) + 0.99 * lesson.not_terminated[number] * worth
            error = abs(said - goal)
            total += float(0 if number == 4 else 0.5 * error**2 if error < 1 else error - 0.5)
    assert found.item() == pytest.approx(total / 32, rel=1e-4)
    assert more["epsilon"] == pytest.approx(data.train.epsilon)


def test_targets_come_from_a_copy(begun):
    """It is as the network was at the last copy, and stays so in between."""
    task, data = begun(target_update_interval=3)
    batches = task.iterate_batches(data.train)
    for number in range(7):
        lesson = next(batches)
        if number % 3 == 0:
            copied = {name: value.clone() for name, value in task.model.state_dict().items()}
        task.step(lesson)
        for name, value in task.target_network.state_dict().items():
            assert torch.equal(value, copied[name])
    assert any(not torch.equal(value, copied[name]) for name, value in task.model.state_dict().items())


def test_updates_and_steps_of_play(begun):
    """An update for every four steps, however many games there are."""
    for count, every in ((1, 4), (4, 4), (8, 4), (2, 1), (3, 4)):
        task, data = begun(num_envs=count, train_frequency=every, steps=800, learning_starts=320)
        batches = task.iterate_batches(data.train)
        for _ in range(20):
            next(batches)
        assert abs(data.train.num_vector_steps * count - 320 - 20 * every) <= max(count, every), (count, every)


def test_double_learning_and_rmsprop_train(begun):
    for fields in ({"double": True}, {"optimizer": "rmsprop"}, {"clip_rewards": False}):
        task, data = begun(**fields)
        batches = task.iterate_batches(data.train)
        losses = [task.step(next(batches))["loss"].item() for _ in range(5)]
        assert all(np.isfinite(losses))


def test_rmsprop_is_that_of_deepminds_code():
    """Twelve steps against NeuralQLearner.lua's formula in NumPy: gradients of many sizes, a rate that is halved."""
    random = np.random.default_rng(0)
    weights = [random.normal(size=shape) for shape in ((3, 2), (4,))]
    parameters = [nn.Parameter(torch.tensor(weight)) for weight in weights]
    make = DQN(optimizer="rmsprop", lr=1e-3).get_optimizer_factory()
    optimizer = Runtime.start("cpu", "float32").prepare_optimizer(make(parameters))
    means, squares, lr = [0.0, 0.0], [0.0, 0.0], 1e-3
    for number in range(12):
        if number == 6:
            lr /= 2
            optimizer.param_groups[0]["lr"].fill_(lr)
        for at, parameter in enumerate(parameters):
            gradient = random.normal(size=weights[at].shape) * 10.0 ** random.integers(-4, 2, weights[at].shape)
            parameter.grad = torch.tensor(gradient)
            means[at] = 0.95 * means[at] + 0.05 * gradient
            squares[at] = 0.95 * squares[at] + 0.05 * gradient**2
            weights[at] = weights[at] - lr * gradient / np.sqrt(squares[at] - means[at] ** 2 + 0.01)
        optimizer.step()
        for parameter, weight in zip(parameters, weights, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-6)


def test_rmsprop_of_a_small_gradient_steps_by_ten_times_it():
    """The root of 0.01 is 0.1; with the constant outside of the root it would be a hundred times."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.full((1,), 1e-6)
    DQN(optimizer="rmsprop", lr=1.0).get_optimizer_factory()([weight]).step()
    assert weight.item() == pytest.approx(-1e-5, rel=1e-4)


def test_rmsprop_of_large_gradients_that_stay_the_same_is_finite():
    """Their variance is rounding, which may be negative."""
    weight = nn.Parameter(torch.zeros(1000))
    optimizer = DQN(optimizer="rmsprop").get_optimizer_factory()([weight])
    weight.grad = torch.linspace(1e3, 1e5, 1000)
    for _ in range(300):
        optimizer.step()
        assert weight.isfinite().all()


def test_rmsprop_goes_on_from_its_state_bit_for_bit():
    def step(parameter, optimizer, numbers):
        for number in numbers:
            parameter.grad = torch.randn(5, 4, generator=torch.Generator().manual_seed(number))
            optimizer.step()

    make = DQN(optimizer="rmsprop").get_optimizer_factory()
    whole, first, second = (nn.Parameter(torch.ones(5, 4)) for _ in range(3))
    step(whole, make([whole]), range(6))
    optimizer = make([first])
    step(first, optimizer, range(3))
    other = make([second])
    other.load_state_dict(optimizer.state_dict())
    second.data.copy_(first.data)
    step(second, other, range(3, 6))
    assert torch.equal(second, whole)


@pytest.mark.parametrize(("optimizer", "share"), [("rmsprop", 1), ("adam", 1 / 32)])
def test_rmsprop_learns_from_the_sum_of_a_batch_and_adam_from_its_mean(begun, optimizer, share):
    """The gradient of the last layer's bias is the sum of the errors of the values, each clipped to -1..1."""
    task, data = begun(optimizer=optimizer, clip_rewards=False)
    batches = task.iterate_batches(data.train)
    next(batches)
    lesson = next(batches)
    lesson = lesson._replace(rewards=torch.linspace(-3, 3, 32))
    task.optimizer.zero_grad()
    task.compute_loss(lesson)[0].backward()
    with torch.no_grad():
        said = task.model(lesson.frames[:, :-1]).gather(1, lesson.actions[:, None])[:, 0]
        goal = lesson.rewards + 0.99 * lesson.not_terminated * task.target_network(lesson.frames[:, 1:]).amax(1)
    errors = (said - goal).clamp(-1, 1)
    assert 0 < (errors.abs() == 1).sum() < 32
    expected = torch.zeros(3).index_add(0, lesson.actions, errors)
    torch.testing.assert_close(task.model.values.bias.grad, share * expected, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_falls(begun):
    task, _ = begun(schedule="polynomial")
    assert [task.schedule(share) for share in (0.0, 0.5, 0.9)] == pytest.approx([2.5e-4, 1.25e-4, 2.5e-5])
    assert task.optimizer.param_groups[0]["lr"].item() == pytest.approx(2.5e-5)


def test_evaluation_changes_nothing(begun):
    task, data = begun()
    before = torch.get_rng_state()
    first = task.evaluate(data.val)
    assert task.evaluate(data.val) == first
    assert first["count"] == 4
    assert -1 <= first["return"] <= 1
    assert first["length"] == GRID_SIZE - 1
    assert torch.equal(torch.get_rng_state(), before)
    assert [title for title, _ in task.plot_evaluation(data.val)]


def test_killed_and_resumed(pageless, tmp_path):
    """Killed with SIGKILL again and again, it ends with the same weights, bit for bit."""
    small = {**SMALL, "steps": 1200, "buffer_size": 300}
    check_task.check_killed_and_resumed(lambda **fields: DQN(**small), tmp_path)


def test_memory_files_are_gone_when_it_is_done(fukami, tmp_path):
    small = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    answer = fukami("train", "dqn", *small, "--device", "cpu", "--out", tmp_path / "run")
    assert answer.status == 0, answer.err
    assert not (tmp_path / "run" / "memory").exists()
    assert {"return", "length", "value", "count"} <= answer.json[-1].keys()
    trained = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().partition("\n")[0])
    assert {"return", "value", "epsilon", "steps_per_second"} <= trained.keys()
    again = fukami("train", "dqn", "--resume", "--out", tmp_path / "run", "--device", "cpu")
    assert again.status == 0, again.err
    assert again.json[-1]["return"] == answer.json[-1]["return"]
    judged = fukami("eval", tmp_path / "run", "--device", "cpu", "--set", "eval_episodes=6")
    assert judged.json[0]["count"] == 6
    played = fukami("play", tmp_path / "run", "--out", tmp_path / "game.gif", "--device", "cpu")
    assert played.status == 0, played.err
    assert played.json[0]["lengths"] == [GRID_SIZE - 1]
    with Image.open(tmp_path / "game.gif") as film:
        assert film.n_frames > 1
    film = fukami("play", tmp_path / "run", "--out", tmp_path / "game.mp4", "--episodes", "2", "--device", "cpu")
    assert film.json[0]["frames"] == 2 * (GRID_SIZE - 1)
    assert (tmp_path / "game.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "hint"),
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
def test_wrong_usage(fukami, words, hint):
    answer = fukami(*words)
    assert answer.status == 2
    assert hint in answer.err


def test_an_image_is_answered(begun, tmp_path):
    task, _ = begun()
    Image.fromarray(Catch(1).render(0)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    good, bad = task.predict([tmp_path / "a.png", tmp_path / "b.png"])
    assert json.loads(json.dumps(good)) == good
    assert good["action"] == max(good["values"], key=good["values"].get)
    assert "b.png" in bad["error"]
    assert task.draw_prediction(tmp_path / "a.png", good).size[1] == 420


ATARI = pytest.mark.skipif(
    importlib.util.find_spec("ale_py") is None, reason="needs the extra: pip install 'fukami[atari]'"
)


@ATARI
def test_an_atari_game_is_seen_as_in_the_paper():
    """84×84 grey, which is what people see, only smaller: two emulators that play in step."""
    played = env_registry.make_envs("ALE/Pong-v5", 1, render=True)
    assert played.action_names == ("noop", "fire", "right", "left", "rightfire", "leftfire")
    seen = played.reset(np.ones(1, bool), np.array([3]))
    assert seen.frames.shape == (1, 84, 84)
    for number in range(40):
        played.send(np.array([number % 6]))
        seen = played.receive()
        image = Image.fromarray(played.render(0))
        assert image.size == (160, 210)
        grey = np.asarray(image.convert("L").resize((84, 84), Image.Resampling.BOX), int)
        assert np.abs(grey - seen.frames[0]).mean() < 3
    played.close()


@ATARI
def test_an_atari_game_begins_after_up_to_30_frames_without_an_action():
    """As many as the seed says, by the emulator's own count; what is seen in Breakout depends on it."""
    played = env_registry.make_envs("breakout", 1)
    reset, counts = played.envs.reset, []
    played.envs.reset = lambda **how: (found := reset(**how), counts.append(found[1]["episode_frame_number"][0]))[0]
    first = [played.reset(np.ones(1, bool), np.array([seed])).frames.copy() for seed in (*range(24), 0)]
    played.close()
    assert min(counts) < 6
    assert 20 < max(counts) <= 30
    assert len(np.unique(np.concatenate(first).reshape(25, -1), axis=0)) == len({*counts}) > 10
    assert np.array_equal(first[0], first[-1])


@ATARI
def test_an_atari_action_is_taken_for_four_frames_and_never_repeated_by_chance():
    """Rewards, not clipped, are those of the emulator stepped frame by frame."""
    import gymnasium

    played = env_registry.make_envs("ms_pacman", 1)
    reset, begun = played.envs.reset, []
    played.envs.reset = lambda **how: (found := reset(**how), begun.append(found[1]["episode_frame_number"][0]))[0]
    played.reset(np.ones(1, bool), np.array([3]))
    plain = gymnasium.make("ALE/MsPacman-v5", frameskip=1, repeat_action_probability=0.0)
    plain.reset(seed=0)
    while plain.unwrapped.ale.getEpisodeFrameNumber() < begun[0]:
        plain.step(0)
    rewards = []
    for action in np.random.default_rng(0).integers(len(played.action_names), size=120):
        played.send(np.array([action]))
        rewards.append((float(played.receive().rewards[0]), sum(plain.step(action)[1] for _ in range(4))))
    played.close()
    plain.close()
    assert all(ours == theirs for ours, theirs in rewards)
    assert max(ours for ours, _ in rewards) == 10  # of a pellet


@ATARI
def test_a_life_that_is_lost_in_an_atari_game_is_seen():
    """Of five in Breakout four are lost, and with the fifth the game is over; so says the emulator's own count."""
    played = env_registry.make_envs("breakout", 1)
    played.reset(np.ones(1, bool), np.array([0]))
    receive, lives, lost = played.envs.recv, [5], []
    played.envs.recv = lambda: (found := receive(), lives.append(int(found[4]["lives"][0])))[0]
    for _ in range(2000):
        played.send(np.array([1]))  # the fire button alone brings the next ball
        seen = played.receive()
        lost.append(bool(seen.life_lost[0]))
        if seen.terminated[0]:
            break
    played.close()
    fell = [after < before for before, after in itertools.pairwise(lives)]
    assert sum(fell) == 5
    assert lives[-1] == 0
    assert lost == [*fell[:-1], False]


@ATARI
@pytest.mark.parametrize("name", ["breakout", "CartPole-v1"])
def test_experience_goes_on_where_it_was(name, tmp_path):
    """Games that were begun at other times are played to where they were; what follows is the same."""

    def experience():
        return ExperienceCollector(
            env_registry.make_envs(name, 3),
            batch_size=8,
            frame_stack=4,
            buffer_size=3000,
            learning_starts=0,
            train_frequency=3,
            exploration_steps=1,
            epsilon_end=0.5,
            seed=1,
        )

    def choose(states):
        return states.flatten(1).float().sum(1).long() % 2

    one = experience()
    one.open_files(tmp_path)
    one.setup(Runtime.start("cpu", "float32"))
    for _ in range(130):
        one.collect(choose)
    state = one.state_dict()
    assert max(map(len, state["taken"])) > min(map(len, state["taken"])) or name == "breakout"
    other = experience()
    other.open_files(tmp_path)
    other.setup(Runtime.start("cpu", "float32"))
    other.load_state_dict(state)
    seen = []
    for each in (other, one):  # both write the same into the same files
        for _ in range(60):
            each.collect(choose)
        seen.append(
            (
                each.get_states().clone(),
                [list(own) for own in each.episode_actions],
                list(each.recent_returns),
                each.sample_batch(),
            )
        )
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1:3] == seen[1][1:3]
    assert all(torch.equal(a, b) for a, b in zip(seen[0][3], seen[1][3], strict=True))


@ATARI
def test_a_pole_is_balanced(begun):
    """By chance it falls after some 20 steps."""
    long = {"steps": 6_000, "buffer_size": 6_000, "learning_starts": 500, "exploration_steps": 2_000, "hidden": 64}
    task, data = begun(
        env="CartPole-v1", lr=1e-3, target_update_interval=100, train_frequency=2, num_envs=2, eval_episodes=10, **long
    )
    assert task.evaluate(data.val)["return"] < 50
    for _, lesson in zip(range(task.count_steps(None)[0]), task.iterate_batches(data.train), strict=False):
        task.step(lesson)
    assert task.evaluate(data.val)["return"] > 70


@ATARI
def test_a_vector_is_learned_from(begun):
    task, data = begun(env="CartPole-v1", num_envs=2)
    assert task.labels == ("0", "1")
    batches = task.iterate_batches(data.train)
    assert np.isfinite(task.step(next(batches))["loss"].item())
    assert task.evaluate(data.val)["length"] > 5
    with pytest.raises(UsageError, match="does not see images"):
        task.predict(["a.png"])


@ATARI
@pytest.mark.parametrize(
    ("name", "hint"), [("ponk", "did you mean 'pong'"), ("Pendulum-v1", "one of a few"), ("Blackjack-v1", "one sees")]
)
def test_games_that_there_are_not(name, hint):
    with pytest.raises(UsageError, match=hint):
        env_registry.make_envs(name, 1)
