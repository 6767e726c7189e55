"""Configurations: the exact line for each mistake, and a resolved text that makes the same thing again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import gin
import pytest

from trainer import config, config_files
from trainer.exits import ConfigError, one_line


class Whisk:
    def __init__(self, speed: int = 3, *, learning_rate: float = 0.1, **others: Any) -> None:
        self.speed = speed

    def __call__(self) -> float:
        return float(self.speed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven:
    degrees: float = 180.0
    fan: bool = False
    tool: Callable[[], Any] = Whisk


class Cake:
    def __init__(
        self, bowl: str, *, layers: int = 2, oven: Any = None, name: str | None = None
    ) -> None:
        if layers > 9:
            raise ValueError(f"layers is {layers}: a cake has at most 9")
        self.bowl, self.layers, self.oven, self.name = bowl, layers, oven, name


class Bowl(Protocol):
    def stir(self) -> None: ...


class Wooden:
    def stir(self) -> None: ...


def borrowed() -> Wooden:
    return Wooden()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    cake: Callable[[str], Any]
    flour: int
    ovens: Any = ()
    limit: float = math.inf
    notes: Any = None
    bowl: Bowl | None = None
    bowls: Sequence[Bowl] = ()
    sizes: Sequence[int] = ()
    beat: float | Callable[[], float] = 1.0
    bring: Callable[[], Bowl] = Wooden


@pytest.fixture(scope="module")
def registry() -> config.Registry:
    registry = config.Registry("test_config", root="Recipe")
    registry.register(Recipe)
    registry.register(Cake, given={"bowl"})
    registry.register(Oven)
    registry.register(Wooden)
    registry.register(borrowed)
    registry.register(Whisk, elsewhere={"learning_rate": "set Recipe.flour"})
    return registry


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `configs/`."""
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setattr(config_files, "SHIPPED", folder)
    return folder


@pytest.fixture
def write(shipped: Path) -> Callable[[str, str], None]:
    def write(name: str, text: str) -> None:
        path = shipped / f"{name}.gin"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return write


GOOD = "Recipe.cake = @Cake\nRecipe.flour = 250\n"


def resolve(
    registry: config.Registry, *params: str, names: tuple[str, ...] = ()
) -> config.Resolved:
    return registry.resolve(config_files.read(names, params))


def line(registry: config.Registry, *params: str, names: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as raised:
        resolve(registry, *params, names=names)
    assert raised.value.code == 78
    return str(raised.value)


# ---------------------------------------------------------------------- mistakes


def test_unknown_config_names_the_nearest(registry, write) -> None:
    write("gan/digits", GOOD)
    write("vae/digits", GOOD)
    there = "(there are: gan/digits, vae/digits)"
    for name, guess in [("gan/digit", "gan/digits"), ("vea/digits", "vae/digits")]:
        with pytest.raises(ConfigError) as raised:
            config_files.read([name])
        assert str(raised.value) == f'there is no config "{name}"; did you mean {guess}? {there}'
    with pytest.raises(ConfigError) as raised:
        config_files.read(["/nowhere/x.gin"])
    assert str(raised.value) == f'there is no config "/nowhere/x.gin" {there}'


MISTAKES = {
    "Cale.layers = 3": "configs/bake.gin:3: Cale is not known; did you mean Cake?",
    "tests.Cale.layers = 3": "configs/bake.gin:3: tests.Cale is not known; did you mean Cake?",
    "Cake.layer = 3": "configs/bake.gin:3: Cake has no parameter layer; did you mean layers?",
    "Cake.qqq = 3": "configs/bake.gin:3: Cake has no parameter qqq (it has layers, oven, name)",
    "Cake.oven = @Ofen()": "configs/bake.gin:3: @Ofen() is not known; did you mean Oven?",
    "Cake.layers = %LAYER\nLAYERS = 2": (
        "configs/bake.gin:3: macro %LAYER is not defined; did you mean LAYERS?"
    ),
    "A = %B\nB = %A\nCake.layers = %A": "configs/bake.gin:3: macro %B refers to itself: give it a value",
    "LAYERS = 2": "configs/bake.gin:3: macro LAYERS is never used",
    "Cake.layers = 'many'": "configs/bake.gin:3: Cake.layers is 'many': it must be int",
    "Cake.layers = 2.5": "configs/bake.gin:3: Cake.layers is 2.5: it must be int",
    "Cake.layers = True": "configs/bake.gin:3: Cake.layers is True: it must be int",
    "Cake.name = 3": "configs/bake.gin:3: Cake.name is 3: it must be str or None",
    "Cake.layers = 3\n# more\nCake.layers = 4": (
        "configs/bake.gin:5: Cake.layers is 4 here and 3 in line 3 of the same file: keep one"
    ),
    "N = 3\nN = 4": "configs/bake.gin:4: N is 4 here and 3 in line 3 of the same file: keep one",
    "Cake.bowl = 'red'": "configs/bake.gin:3: Cake.bowl is given by its caller: remove the binding",
    "Whisk.learning_rate = 1.0": (
        "configs/bake.gin:3: Whisk.learning_rate has no effect: set Recipe.flour"
    ),
    "Whisk.others = 1.0": ("configs/bake.gin:3: Whisk has no parameter others (it has speed)"),
    "Oven.degrees = 200.0": (
        "configs/bake.gin:3: Oven.degrees is never used: "
        "nothing in this configuration refers to @Oven"
    ),
    "Cake.oven = @first/Oven()\nfrist/Oven.fan = True": (
        "configs/bake.gin:4: frist/Oven.fan is never used: there is @first/Oven, "
        "but no @frist/Oven; did you mean first?"
    ),
    "import os": (
        "configs/bake.gin:3: import os would run the module's code: if you trust it, give --allow_imports"
    ),
    "from os import path": (
        "configs/bake.gin:3: a config cannot say 'from os import path': write import and the module's name"
    ),
    "Cake.name = sponge": (
        'configs/bake.gin:3: the value sponge is not a literal: a text needs quotes ("sponge"), '
        "a name @ or %"
    ),
    "Cake.layers 3": (
        "configs/bake.gin:3: cannot read 'Cake.layers 3': "
        "Couldn't parse statement, expected ':' or '='"
    ),
    "Cake.name = %gin.REQUIRED": (
        "configs/bake.gin:3: Cake.name is required: "
        "set it in a config, or by --gin_param=Cake.name=…"
    ),
    "include 'bake'": "configs/bake.gin includes itself: remove one of the include lines",
    "include 'cakes'": 'configs/bake.gin:3: there is no config "cakes"; did you mean bake? (there are: bake)',
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistake_has_its_line(registry, write, text: str) -> None:
    write("bake", f"{GOOD}{text}\n")
    assert line(registry, names=("bake",)) == MISTAKES[text]


SHAPES = {
    "Recipe.bowl=@Wooden": "Bowl (@Name()) or None; write @Wooden()",
    "Recipe.bowl=@Oven()": "Bowl (@Name()) or None",
    "Recipe.bowl=3": "Bowl (@Name()) or None",
    "Recipe.bowls=@Wooden()": "[Bowl (@Name()), …]; write [@Wooden()]",
    "Recipe.bowls=@Wooden": "[Bowl (@Name()), …]; write [@Wooden()]",
    "Recipe.bowls=[@Wooden]": "[Bowl (@Name()), …]",
    "Recipe.bowls=[@Wooden(), @Oven()]": "[Bowl (@Name()), …]",
    "Recipe.sizes=200": "[int, …]; write [200]",
    "Recipe.sizes=(2, True)": "[int, …]",
    "Recipe.sizes='ab'": "[int, …]",
    "Recipe.beat='x'": "float or a function (@Name)",
    "Recipe.beat=@Oven()": "float or a function (@Name)",
    "Recipe.beat=@Oven": "float or a function (@Name)",
    "Recipe.bring=@borrowed()": "a function (@Name); write @borrowed",
    "Recipe.bring=@Oven": "a function (@Name)",
    "Recipe.cake=@Cake()": "a function (@Name); write @Cake",
    "Recipe.cake=3": "a function (@Name)",
    "Recipe.flour=@Oven()": "int",
    "Oven.fan=1": "bool",
}


@pytest.mark.parametrize("param", SHAPES)
def test_value_of_a_wrong_shape_says_what_is_expected(registry, param: str) -> None:
    key, value = param.split("=")
    assert line(registry, GOOD, param) == (
        f"--gin_param {param}: {key} is {value}: it must be {SHAPES[param]}"
    )


@pytest.mark.parametrize(
    "param",
    [
        "Recipe.bowl=@Wooden()",
        "Recipe.bowl=@borrowed()",
        "Recipe.bowl=None",
        "Recipe.bowls=(@Wooden(), @borrowed())",
        "Recipe.sizes=[1, 2]",
        "Recipe.beat=2",
        "Recipe.beat=@Whisk()",
        "Recipe.bring=@borrowed",
        "Recipe.limit=1",
        "Recipe.notes={'a': @Wooden}",
    ],
)
def test_value_of_a_right_shape(registry, param: str) -> None:
    key, value = param.split("=")
    assert resolve(registry, GOOD, param).bindings[key] == value


def test_text_that_ends_too_early_names_file_and_line(registry, write) -> None:
    write("bake", f"{GOOD}Recipe.ovens = (1,\n")
    assert line(registry, names=("bake",)).startswith("configs/bake.gin:")


def test_missing_value(registry) -> None:
    assert line(registry, "Recipe.flour = 1") == (
        "Recipe.cake has no value: set it in a config, or by --gin_param=Recipe.cake=…"
    )


def test_parameter_from_the_command_line_is_named(registry, write) -> None:
    write("bake", GOOD)
    assert line(registry, "Cake.layer=3", names=("bake",)) == (
        "--gin_param Cake.layer=3: Cake has no parameter layer; did you mean layers?"
    )
    assert line(registry, "Cake.name=sponge", names=("bake",)).startswith(
        "--gin_param Cake.name=sponge: the value sponge is not a literal: a text needs quotes"
    )
    assert line(registry, "Cake.name=/a/sponge", names=("bake",)) == (
        "--gin_param Cake.name=/a/sponge: the value /a/sponge is not a literal: a text needs quotes, "
        "--gin_param='Cake.name=\"/a/sponge\"'"
    )
    assert line(registry, "Cake.name=a/sponge.txt", names=("bake",)) == (
        "--gin_param Cake.name=a/sponge.txt: the value a/sponge.txt is not a literal: a text needs quotes "
        '("a/sponge.txt"), a name @ or %'
    )
    assert '("sponge"), a name @ or %' in line(registry, "Cake.name=sponge(1)", names=("bake",))


def test_what_a_replaced_value_needed_is_left_out(registry, write) -> None:
    """Also by an including file and by a macro; nothing that is said after it was replaced."""
    write("base", GOOD + "OVEN = @first/Oven()\nCake.oven = %OVEN\nfirst/Oven.fan = True\n")
    none = resolve(registry, "Cake.oven=None", names=("base",))
    assert none.bindings["Cake.oven"] == "None" and "Oven" not in none.text
    other = resolve(registry, "OVEN=@second/Oven()", "second/Oven.fan=False", names=("base",))
    assert {k: v for k, v in other.bindings.items() if k.endswith("fan")} == {
        "second/Oven.fan": "False"
    }
    write("user", "include 'base.gin'\nCake.oven = None\n")
    assert resolve(registry, names=("user",)) == none
    for late in (("Cake.oven=None", "first/Oven.fan=False"), ("Cake.oven=None", "Oven.fan=False")):
        assert line(registry, *late, names=("base",)).endswith(
            "Oven.fan is never used: nothing in this configuration refers to @Oven"
        )
    assert "frist/Oven.fan is never used" in line(
        registry, "frist/Oven.fan=True", "Cake.oven=None", names=("base",)
    )


def test_what_is_required_is_named_by_its_macro_and_only_where_it_is_used(registry, write) -> None:
    text = "FAN = %gin.REQUIRED\nHOT = %FAN\nCake.oven = @Oven()\nOven.fan = %HOT\n"
    write("base", GOOD + text)
    assert line(registry, names=("base",)) == (
        "configs/base.gin:3: FAN is required: set it in a config, or by --gin_param=FAN=…"
    )
    assert "Oven" not in resolve(registry, "Cake.oven=None", names=("base",)).text


def test_function_called_later_leaves_its_scope(registry) -> None:
    """gin enters a scope while it makes the arguments of a call; an uncalled reference runs after that."""
    inside = ("Recipe.cake=@Cake", "Recipe.flour=1", "Recipe.ovens=(@hot/Oven(),)")
    assert line(registry, *inside, "hot/Oven.tool=@Whisk", "hot/Whisk.speed=9") == (
        "--gin_param hot/Whisk.speed=9: hot/Whisk.speed is never used: there is @Whisk, but no @hot/Whisk"
    )
    kept = resolve(registry, *inside, "hot/Oven.tool=@hot/Whisk", "hot/Whisk.speed=9")
    assert registry.build(kept).ovens[0].tool().speed == 9


def test_what_another_builds_does_not_change_what_is_called_later(registry) -> None:
    """As the classifier of --features, made before the training traces its step."""
    ours = ("Recipe.cake=@Cake", "Recipe.flour=1", "Recipe.ovens=(@hot/Oven(),)")
    ours += ("hot/Oven.tool=@hot/Whisk", "hot/Whisk.speed=9", "Recipe.notes={'a': (1.5, None)}")
    recipe = registry.build(resolve(registry, *ours))
    with config.kept():
        other = registry.build(resolve(registry, *ours[:-2], "hot/Whisk.speed=4"))
        assert other.ovens[0].tool().speed == 4
    assert recipe.ovens[0].tool().speed == 9


def test_error_of_a_constructor_is_its_own_line(registry) -> None:
    resolved = resolve(registry, GOOD, "Cake.layers=12")
    with pytest.raises(ValueError) as raised:
        registry.build(resolved).cake("red")
    assert "In call to configurable" in str(raised.value)
    assert one_line(raised.value) == "layers is 12: a cake has at most 9"


# ---------------------------------------------------------------------- what is read


def test_later_wins(registry, write) -> None:
    write("base", f"LAYERS = 3\n{GOOD}Cake.layers = %LAYERS\n")
    write("sub/big", "include 'base'\nLAYERS = 5\n")
    assert resolve(registry, names=("base",)).bindings["Cake.layers"] == "3"
    assert resolve(registry, names=("sub/big",)).bindings["Cake.layers"] == "5"
    assert resolve(registry, names=("sub/big", "base")).bindings["Cake.layers"] == "3"
    overridden = resolve(registry, "LAYERS=7", "LAYERS=8", names=("sub/big",))
    assert overridden.bindings["Cake.layers"] == "8"


def test_include_beside_the_file(registry, tmp_path: Path, shipped: Path) -> None:
    (tmp_path / "base.gin").write_text(GOOD)
    mine = tmp_path / "mine.gin"
    mine.write_text("include 'base.gin'\nCake.layers = 4\n")
    assert resolve(registry, names=(str(mine),)).bindings["Cake.layers"] == "4"


def test_what_is_shipped_includes_what_is_shipped(
    registry, write, tmp_path: Path, monkeypatch
) -> None:
    """Not a file of that name that happens to lie where the command was typed; one's own config may."""
    write("cakes/base", f"{GOOD}Cake.layers = 3\n")
    write("cakes/big", "include 'cakes/base.gin'\n")
    here = tmp_path / "here"
    (here / "cakes").mkdir(parents=True)
    (here / "cakes/base.gin").write_text(f"{GOOD}Cake.layers = 7\n")
    (here / "mine").mkdir()
    (here / "mine/mine.gin").write_text("include 'cakes/base.gin'\n")
    monkeypatch.chdir(here)
    for name, layers in [
        ("cakes/big", "3"),
        ("../configs/cakes/big.gin", "3"),
        ("mine/mine.gin", "7"),
    ]:
        assert resolve(registry, names=(name,)).bindings["Cake.layers"] == layers


def test_resolved_text_is_sorted_and_complete(registry) -> None:
    """Defaults are written out, down to those of registered functions; what gin cannot say is left out."""
    resolved = resolve(
        registry,
        "HOT = 250.0",
        GOOD,
        "Recipe.ovens = [@Oven(), @hot/Oven(), {'degrees': %HOT, 'at': (-1,)}]",
        "hot/Oven.degrees = %HOT",
        "Recipe.notes = 'it\\'s\\nlate'",
    )
    assert resolved.text == "\n".join(
        [
            "Cake.layers = 2",
            "Cake.name = None",
            "Cake.oven = None",
            "Oven.degrees = 180.0",
            "Oven.fan = False",
            "Oven.tool = @Whisk",
            "hot/Oven.degrees = 250.0",
            "Recipe.beat = 1.0",
            "Recipe.bowl = None",
            "Recipe.bowls = ()",
            "Recipe.bring = @Wooden",
            "Recipe.cake = @Cake",
            "Recipe.flour = 250",
            'Recipe.notes = "it\'s\\nlate"',
            "Recipe.ovens = [@Oven(), @hot/Oven(), {'degrees': 250.0, 'at': (-1,)}]",
            "Recipe.sizes = ()",
            "Whisk.speed = 3",
            "",
        ]
    )


def test_numbers_beyond_all_others_are_kept(registry) -> None:
    text = resolve(registry, GOOD, "Recipe.ovens = [@Oven()]", "Oven.degrees = -1e999").text
    assert "Oven.degrees = -1e999" in text
    assert resolve(registry, *text.splitlines()).text == text


def test_resolved_text_makes_the_same_again(registry, tmp_path: Path) -> None:
    first = resolve(
        registry, GOOD, "Recipe.ovens=(@hot/Oven(),)", "hot/Oven.fan=True", "Whisk.speed=7"
    )
    path = tmp_path / "config.gin"
    path.write_text(first.text)
    second = resolve(registry, names=(str(path),))
    assert second == first
    for resolved in (first, second):
        recipe = registry.build(resolved)
        assert recipe.flour == 250
        assert recipe.limit == math.inf
        assert (recipe.ovens[0].fan, recipe.ovens[0].degrees) == (True, 180.0)
        assert recipe.ovens[0].tool().speed == 7
        assert recipe.cake("red").bowl == "red"


def test_every_binding_that_is_kept_is_operative_for_gin(registry) -> None:
    """What is followed statically here is what gin records when everything is called."""
    resolved = resolve(
        registry,
        GOOD,
        "Recipe.ovens=(@hot/Oven(), @Oven())",
        "hot/Oven.fan=True",
        "Cake.oven=@cold/Oven()",
    )
    recipe = registry.build(resolved)
    recipe.cake("red").oven.tool()
    operative = gin.operative_config_str(max_line_length=1000)
    used = {key.rpartition("/")[2] for key in resolved.bindings}
    for key in used:
        assert f"{key} = " in operative, key


# ---------------------------------------------------------------------- going on


def test_compare_names_the_first_difference(registry) -> None:
    old = resolve(registry, GOOD, "Cake.layers=3")
    new = resolve(registry, GOOD, "Cake.layers=2", "Recipe.flour=300")
    with pytest.raises(ConfigError) as raised:
        registry.compare(old, new, {"Recipe.notes"}, "runs/x")
    assert str(raised.value) == (
        "workdir runs/x holds a run of another configuration: Cake.layers is 3 there and 2 here "
        "(and 1 more); choose another --workdir, or the configuration in runs/x/config.gin"
    )
    registry.compare(old, new, {"Recipe.flour", "Cake.layers"}, "runs/x")


def test_compare_knows_defaults(registry) -> None:
    """A default that is written out is the same configuration; a new reference is not."""
    old = resolve(registry, GOOD)
    registry.compare(old, resolve(registry, GOOD, "Cake.layers=2"), (), "runs/x")
    with pytest.raises(ConfigError, match=r"Cake\.oven is None there and @Oven\(\) here"):
        registry.compare(old, resolve(registry, GOOD, "Cake.oven=@Oven()"), (), "runs/x")


def test_what_only_a_field_that_may_differ_leads_to_may_come_and_go(registry) -> None:
    may = {"Recipe.notes"}
    old = resolve(registry, GOOD)
    new = resolve(registry, GOOD, "Recipe.notes=@dark/Oven()", "dark/Oven.degrees=90.0")
    added = {"dark/Oven.degrees", "Oven.fan", "Oven.tool", "Whisk.speed"}
    assert new.bindings.keys() - old.bindings.keys() == added
    for one, other in ((old, new), (new, old)):
        registry.compare(one, other, may, "runs/x")
        with pytest.raises(ConfigError, match=r"Oven\.fan is .* \(and 4 more\)"):
            registry.compare(one, other, (), "runs/x")
    # What something else leads to as well decides.
    used = resolve(registry, GOOD, "Recipe.ovens=@Oven()", "Recipe.notes=@Oven()", "Oven.fan=True")
    cold = resolve(registry, GOOD, "Recipe.ovens=@Oven()")
    with pytest.raises(ConfigError, match=r"Oven\.fan is True there and False here; choose"):
        registry.compare(used, cold, may, "runs/x")
