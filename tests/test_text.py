"""The C++ that Inductor wrote: what is changed in it, what is refused, and several programs as one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compile.backends import text
from pipeline.compile.backends.repeats import Call, Chain
from pipeline.errors import CaptureError

HEADER = "#include <torch/csrc/inductor/cpp_wrapper/cpu.h>\n"
RELEASE = "    py::gil_scoped_release_simple release;\n"
INPUTS = "    auto inputs = steal_from_raw_handles_to_raii_handles(input_handles, 1);\n"
CALLS = f"""{HEADER}#include <cmath>
void inductor_entry_impl(AtenTensorHandle* input_handles, AtenTensorHandle* outputs) {{
{INPUTS}{RELEASE}    cpp_fused_add_0(inputs, outputs);
}}
"""
KERNELS = """#include <cmath>
extern "C"  void cpp_fused_add_0(const float* in_ptr0,
                       float* out_ptr0)
{
    out_ptr0[0] = in_ptr0[0] + 1.0f;
}
"""
SCATTER = """extern "C"  void cpp_fused_scatter_1(const int64_t* in_ptr0, float* out_ptr0)
{
    #pragma omp parallel num_threads(2)
    {
        #pragma omp for
        for(int64_t x0=0; x0<8; x0+=1) { out_ptr0[x0] = 0.0f; }
        #pragma omp for collapse(2)
        for(int64_t x0=0; x0<8; x0+=1) { atomic_add(&out_ptr0[in_ptr0[x0]], 1.0f); }
        #pragma omp for
        for(int64_t x0=0; x0<8; x0+=1) { out_ptr0[x0] += 1.0f; }
    }
}
"""


def read(calls=CALLS, kernels=KERNELS):
    return text.Code.read(calls, kernels, 1)


def program(*args, **names):
    """A program of one part."""
    return text.Program((read(*args, **names),))


def test_the_lock_is_not_released_and_all_else_stays():
    """Only the release of the interpreter's lock is taken out of the calls, and plain kernels stay as they are."""
    code = read()
    assert code.calls == CALLS.replace(RELEASE, "")
    assert (code.kernels, code.outputs) == (KERNELS, 1)


@pytest.mark.parametrize(("calls", "found"), [(CALLS.replace(HEADER, ""), 0), (HEADER + CALLS, 2)])
def test_another_number_of_headers_is_another_inductor(calls, found):
    """Calls with no header, or with two, are refused."""
    with pytest.raises(CaptureError, match=f"it has {found} times a header, not 1"):
        read(calls)


@pytest.mark.parametrize("found", [0, 2])
@pytest.mark.parametrize(
    ("line", "what"), [(RELEASE, "release of the interpreter's lock"), (INPUTS, "place that takes the inputs")]
)
def test_another_number_of_lines_is_another_inductor(line, what, found):
    """Calls that never release the interpreter's lock or take their inputs, or do so twice, are refused."""
    with pytest.raises(CaptureError, match=f"it has {found} times a {what}, not 1"):
        read(CALLS.replace(line, found * line))


@pytest.mark.parametrize(
    "kernels", [KERNELS.replace("out_ptr0)\n{", "out_ptr0) {  // here"), KERNELS.replace("\n}\n", "\n  }\n")]
)
def test_a_kernel_whose_end_is_not_found_is_another_inductor(kernels):
    """A kernel that is defined but whose body does not begin or end as known is refused."""
    with pytest.raises(CaptureError, match="it has 0 times a kernel, not 1"):
        read(kernels=kernels)


def test_a_loop_of_atomic_additions_runs_on_one_thread():
    """Only the loop that adds into shared places becomes a single one; those beside it stay shared."""
    expected = SCATTER.replace("#pragma omp for collapse(2)", "#pragma omp single")
    assert read(kernels=KERNELS + SCATTER).kernels == KERNELS + expected


def test_a_loop_that_is_single_already_stays():
    """An atomic addition on one thread needs no change."""
    kernel = SCATTER.replace("#pragma omp for collapse(2)", "#pragma omp single")
    assert text._serial(kernel) == kernel


@pytest.mark.parametrize(
    "kernel",
    [
        SCATTER.replace("atomic_add", "add"),
        "\n".join(line for line in SCATTER.splitlines() if "omp" not in line),
    ],
    ids=["no atomic addition", "one thread"],
)
def test_kernels_without_shared_additions_stay(kernel):
    """A kernel without atomic additions, or without threads, is left alone."""
    assert text._serial(kernel) == kernel


@pytest.mark.parametrize("pragma", ["#pragma omp parallel for", "#pragma omp task", "#pragma omp sections"])
def test_an_unknown_loop_of_atomic_additions_is_refused(pragma):
    """Where the loop around an atomic addition is not known, it can't be made a single one."""
    kernel = SCATTER.replace("#pragma omp for", "#pragma omp taskloop").replace(
        "#pragma omp taskloop collapse(2)", pragma
    )
    with pytest.raises(CaptureError, match="it has 0 times a shared loop around an addition, not 1"):
        text._serial(kernel)


def test_kernels_of_one_name_do_not_clash():
    """Two programs whose kernels have one name get two names, in what defines and in what calls them."""
    calls, kernels = text.joined([program(), program()], text.RUN)
    for k in range(2):
        assert calls.count(f"cpp_fused_add_0_{k}(inputs, outputs);") == 1
        assert kernels.count(f'extern "C"  void cpp_fused_add_0_{k}(') == 1
        assert calls.index(f"namespace part_{k} {{") < calls.index(f"cpp_fused_add_0_{k}(")
    assert "cpp_fused_add_0(" not in calls + kernels


@given(st.integers(1, 12))
def test_a_kernel_whose_name_begins_like_anothers_keeps_its_own(count):
    """Kernels are renamed as whole words: add_1 is neither taken for a part of add_12 nor of own_add_1."""
    kernels = "".join(KERNELS.replace("add_0", f"add_{i}") for i in range(count))
    calls = CALLS.replace(
        "cpp_fused_add_0(inputs", "".join(f"cpp_fused_add_{i}(); " for i in range(count)) + "own_cpp_fused_add_0(inputs"
    )
    joined_calls, joined_kernels = text.joined([program(calls, kernels)], text.CALL)
    assert joined_calls.count(" own_cpp_fused_add_0(inputs") == 1
    for i in range(count):
        assert joined_calls.count(f" cpp_fused_add_{i}_0();") == 1
        assert joined_kernels.count(f" cpp_fused_add_{i}_0(const") == 1


def test_includes_come_once_and_first():
    """An include that several programs have stands once, in front of every namespace."""
    joined = text.joined([program(), program(HEADER + CALLS.replace(HEADER, "#  include <vector>\n"))], text.CALL)
    for part, lines in zip(
        joined, ([text._USED, "#include <cmath>\n", "#  include <vector>\n"], ["#include <cmath>\n"]), strict=True
    ):
        for line in lines:
            assert part.count(line) == 1
        assert part.rindex("#include") < part.index("namespace part_0")
    assert joined[0].index(text._USED) < joined[0].index("struct PipelineMatrix")
    assert HEADER not in joined[0]
    assert text.whole(joined[0]) == joined[0].replace(text._USED, HEADER)


@pytest.mark.parametrize("kind", [text.RUN, text.CALL])
def test_each_program_has_an_entry(kind):
    """A library has one entry for each program, of its own kind, after what the entries are defined by."""
    calls, _ = text.joined([program() for _ in range(3)], kind)
    entries = [f"PIPELINE_{kind}({text.entry(k)}, part_{k})\n" for k in range(3)]
    assert calls.endswith("".join(entries))
    assert calls.count("#define PIPELINE_RUN(") == 1
    assert len({text.entry(k) for k in range(3)}) == 3


def test_only_what_runs_steps_keeps_its_buffers():
    """Buffers stay for the next step in a library that runs steps, not in one whose callers keep its results."""
    run, call = (text.joined([program()], kind)[0] for kind in (text.RUN, text.CALL))
    assert run.index("PIPELINE_KEPT") < run.index("namespace part_0")
    assert "PIPELINE_KEPT" not in call


def test_programs_without_kernels_are_joined_too():
    """A program that only calls torch's operations has no kernel to rename."""
    calls, kernels = text.joined([program(kernels="")], text.CALL)
    assert "cpp_fused_add_0(inputs" in calls
    assert "void" not in kernels


def test_a_part_is_compiled_once_for_all_programs():
    """A part that two programs call has one namespace, and room for the buffers of all calls in one program."""
    shared, own = read(), read()
    calls = (Call(0, (0,), (1,), ()), Call(1, (1,), (2,), (1,)), Call(0, (2,), (3,), (2,)))
    chain = Chain((), calls, (4,), 4, (3,))
    joined, kernels = text.joined([text.Program((shared, own), chain), text.Program((shared,))], text.RUN)
    assert joined.count("#define PIPELINE_CALLS 2\nnamespace part_0 {") == 1
    assert joined.count("#define PIPELINE_CALLS 1\nnamespace part_1 {") == 1
    assert kernels.count("namespace ") == 2
    assert "parts[] = {part_0::inductor_entry_impl, part_1::inductor_entry_impl}" in joined
    # Part, place among its calls, and the inputs, outputs and last values, each after their number.
    assert "plan[] = {0, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 2, 1, 1, 0, 1, 1, 2, 1, 3, 1, 2}" in joined
    assert "pipeline_chain(parts, plan, std::end(plan), 1, 4, {3}, inputs, outputs)" in joined
    assert joined.endswith(f"PIPELINE_RUN({text.entry(0)}, program_0)\nPIPELINE_RUN({text.entry(1)}, part_0)\n")
