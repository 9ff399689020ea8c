// The PTX that a kernel writes in asm statements: translate makes an Assembly of each, with the program's own
// text and operands, which the compiler parses and which the threads carry out. Known instructions are in the
// table below with the operands they take; anything else stops the program and names it. Register layouts
// are those of the PTX manual, section "warp level matrix instructions".
#pragma once
#include "wgmma.h"
#include <initializer_list>

namespace emu {

template <size_t bytes> using Unsigned =
    std::conditional_t<bytes == 2, uint16_t, std::conditional_t<bytes == 4, uint32_t, uint64_t>>;

struct AsmOperand {
    char constraint; // as in CUDA: f, d, h, r, l, n
    void* place;     // of an output
    uint64_t value;  // of an input
    template <class T> T get() const {
        if (!place) return std::bit_cast<T>(Unsigned<sizeof(T)>(value));
        T t;
        memcpy(&t, place, sizeof(T));
        return t;
    }
    template <class T> void set(T t) const { memcpy(place, &t, sizeof(T)); }
};

template <char constraint, class T> constexpr bool fits() {
    return constraint == 'f'   ? std::is_same_v<T, float>
           : constraint == 'd' ? std::is_same_v<T, double>
           : constraint == 'h' ? sizeof(T) == 2 && std::is_integral_v<T>
           : constraint == 'r' ? sizeof(T) == 4 && (std::is_integral_v<T> || std::is_enum_v<T>)
           : constraint == 'l' ? sizeof(T) == 8 && (std::is_integral_v<T> || std::is_pointer_v<T>)
                               : constraint == 'n' && std::is_integral_v<T>;
}
template <char constraint, class T> AsmOperand output(T& place) {
    static_assert(fits<constraint, T>(), "asm operand: the type does not fit its constraint");
    return {constraint, &place, 0};
}
template <char constraint, class T> AsmOperand input(T value) {
    static_assert(fits<constraint, T>(), "asm operand: the type does not fit its constraint");
    if constexpr (constraint == 'n')
        return {constraint, nullptr, uint64_t(value)};
    else
        return {constraint, nullptr, std::bit_cast<Unsigned<sizeof(T)>>(value)};
}

// ---- the instructions -----------------------------------------------------------------------------------

enum class Op {
    mma,
    ldmatrix,
    cp_async,
    commit,
    wait_group,
    wait_all,
    fence_proxy,
    wgmma,
    wgmma_fence,
    wgmma_commit,
    wgmma_wait,
    bar,
    ex2,
    lg2,
    rcp,
    rsqrt,
    sqrt,
    tanh,
    cvt,
    prefetch,
    wait_before,
    launch_next
};

// An instruction and the operands it takes: letters are constraints, i an immediate number, {} a list of
// registers (more than four of a kind with their number), [] an address. Variants of one instruction are
// lines of their own.
struct Known {
    const char *mnemonic, *operands;
    Op op;
    int count;     // ldmatrix: matrices; wgmma: columns
    bool modifier; // ldmatrix: .trans; cp.async: .cg, which moves 16 bytes only; others: .ftz
};
constexpr Known known_instructions[] = {
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "{ffff},{rrrr},{rr},{ffff}", Op::mma, 0, false},
    {"ldmatrix.sync.aligned.m8n8.x1.shared.b16", "{r},[r]", Op::ldmatrix, 1, false},
    {"ldmatrix.sync.aligned.m8n8.x2.shared.b16", "{rr},[r]", Op::ldmatrix, 2, false},
    {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", "{rrrr},[r]", Op::ldmatrix, 4, false},
    {"ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16", "{r},[r]", Op::ldmatrix, 1, true},
    {"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", "{rr},[r]", Op::ldmatrix, 2, true},
    {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "{rrrr},[r]", Op::ldmatrix, 4, true},
    {"cp.async.ca.shared.global", "[r],[l],i", Op::cp_async, 0, false},
    {"cp.async.ca.shared.global", "[r],[l],i,r", Op::cp_async, 0, false},
    {"cp.async.cg.shared.global", "[r],[l],i", Op::cp_async, 0, true},
    {"cp.async.cg.shared.global", "[r],[l],i,r", Op::cp_async, 0, true},
    {"cp.async.commit_group", "", Op::commit, 0, false},
    {"cp.async.wait_group", "i", Op::wait_group, 0, false},
    {"cp.async.wait_all", "", Op::wait_all, 0, false},
    {"fence.proxy.async", "", Op::fence_proxy, 0, false},
    {"fence.proxy.async.shared", "", Op::fence_proxy, 0, false},
    {"wgmma.fence.sync.aligned", "", Op::wgmma_fence, 0, false},
    {"wgmma.commit_group.sync.aligned", "", Op::wgmma_commit, 0, false},
    {"wgmma.wait_group.sync.aligned", "i", Op::wgmma_wait, 0, false},
    {"wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16", "{32f},l,l,i,i,i,i,i", Op::wgmma, 64, false},
    {"wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", "{64f},l,l,i,i,i,i,i", Op::wgmma, 128, false},
    {"wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16", "{128f},l,l,i,i,i,i,i", Op::wgmma, 256, false},
    {"bar.sync", "i", Op::bar, 0, false},
    {"bar.sync", "r", Op::bar, 0, false},
    {"bar.sync", "i,i", Op::bar, 0, false},
    {"bar.sync", "r,i", Op::bar, 0, false},
    {"bar.sync", "i,r", Op::bar, 0, false},
    {"bar.sync", "r,r", Op::bar, 0, false},
    {"prefetch.global.L2", "[l]", Op::prefetch, 0, false},
    {"griddepcontrol.wait", "", Op::wait_before, 0, false},
    {"griddepcontrol.launch_dependents", "", Op::launch_next, 0, false},
    {"ex2.approx.f32", "f,f", Op::ex2, 0, false},
    {"ex2.approx.ftz.f32", "f,f", Op::ex2, 0, true},
    {"lg2.approx.f32", "f,f", Op::lg2, 0, false},
    {"lg2.approx.ftz.f32", "f,f", Op::lg2, 0, true},
    {"rcp.approx.f32", "f,f", Op::rcp, 0, false},
    {"rcp.approx.ftz.f32", "f,f", Op::rcp, 0, true},
    {"rsqrt.approx.f32", "f,f", Op::rsqrt, 0, false},
    {"rsqrt.approx.ftz.f32", "f,f", Op::rsqrt, 0, true},
    {"sqrt.approx.f32", "f,f", Op::sqrt, 0, false},
    {"sqrt.approx.ftz.f32", "f,f", Op::sqrt, 0, true},
    {"tanh.approx.f32", "f,f", Op::tanh, 0, false},
    {"cvt.rn.bf16x2.f32", "r,f,f", Op::cvt, 0, false},
};

// Round to nearest, ties to even; NaN becomes the hardware's 0x7fff.
inline uint16_t float_to_bf16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void multiply(MmaTile& m) {             // d = a b + c
    for (int half = 0; half < 16; half += 8) { // eight rows of sums in registers
        Float8 sum[8];
        memcpy(sum, m.c[half], sizeof sum);
        for (int k = 0; k < 16; k++) {
            Float8 row;
            memcpy(&row, m.b[k], sizeof row);
            for (int i = 0; i < 8; i++) sum[i] += m.a[half + i][k] * row;
        }
        memcpy(m.d[half], sum, sizeof sum);
    }
}

// d = a b + c with a (16,16) row-major, b (16,8) and c, d (16,8). With g = lane / 4 and t = lane % 4, a lane
// holds (two bf16 in a register, the lower column or row in the lower half)
//   a0: row g, columns 2t 2t+1     a1: row g+8     a2: row g, columns 2t+8 2t+9     a3: row g+8, same columns
//   b0: rows 2t 2t+1, column g     b1: rows 2t+8 2t+9
//   c0 c1: row g, columns 2t 2t+1  c2 c3: row g+8
// Products are summed in fp32 in the order of k; the hardware's order is not documented. Every lane writes
// its elements into its warp's tile on arrival, the last one multiplies, and every lane reads its own of d:
// that is not written again before all lanes are back with the next product.
EMU_INLINE void mma(float* d, const uint32_t* a, const uint32_t* b, const float* c, int line) {
    const int g = int(self->lane()) / 4, t = int(self->lane()) % 4 * 2;
    MmaTile& m = worker->mma_tiles[self->number / 32];
    const auto low = [](uint32_t pair) { return std::bit_cast<float>(pair << 16); };
    const auto high = [](uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000); };
    for (int i = 0; i < 4; i++) {
        m.a[g + i % 2 * 8][t + i / 2 * 8] = low(a[i]);
        m.a[g + i % 2 * 8][t + i / 2 * 8 + 1] = high(a[i]);
        m.c[g + i / 2 * 8][t + i % 2] = c[i];
    }
    for (int i = 0; i < 2; i++) {
        m.b[t + i * 8][g] = low(b[i]);
        m.b[t + i * 8 + 1][g] = high(b[i]);
    }
    warp_meet(0xffffffff, nullptr, "mma.sync", line, [&m](Thread*, unsigned) { multiply(m); });
    for (int i = 0; i < 4; i++) d[i] = m.d[g + i / 2 * 8][t + i % 2];
}

// `count` matrices of 8 rows of 8 bf16; lane 8 i + r brings the address of row r of matrix i (16 bytes in
// shared memory) and every lane takes, of each matrix, row lane / 4, columns 2 (lane % 4) and the next; with
// .trans the same of the transposed matrix.
struct LdmatrixLane {
    uint64_t address;
    uint32_t value[4];
};

inline void ldmatrix_all(Thread* lanes, int count, bool trans, const char* name) {
    Thread* const me = self;
    const char* rows[32];
    for (int lane = 0; lane < count * 8; lane++) {
        self = &lanes[lane]; // so that a bad address is laid at the right lane's door
        rows[lane] = shared_memory(static_cast<LdmatrixLane*>(lanes[lane].operands)->address, 16, name);
    }
    for (int lane = 0; lane < 32; lane++) {
        LdmatrixLane& l = *static_cast<LdmatrixLane*>(lanes[lane].operands);
        const int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < count; i++) {
            uint16_t pair[2];
            for (int j = 0; j < 2; j++)
                memcpy(&pair[j], trans ? rows[i * 8 + t + j] + g * 2 : rows[i * 8 + g] + (t + j) * 2, 2);
            l.value[i] = uint32_t(pair[1]) << 16 | pair[0];
        }
    }
    self = me;
}
EMU_INLINE void ldmatrix(LdmatrixLane& mine, int count, bool trans, const char* name, int line) {
    warp_meet(0xffffffff, &mine, name, line,
              [&](Thread* lanes, unsigned) { ldmatrix_all(lanes, count, trans, name); });
}

// cp.async: the data is there when a wait covers its group, and not before: until then the destination holds
// 0xFF, so that neither a missing wait nor a buffer refilled too early goes unseen. Bytes beyond the source
// size are zero.
inline void cp_async(uint64_t to, const void* from, int64_t bytes, int64_t source_bytes, bool only_16,
                     const char* name) {
    if (bytes != 16 && (only_16 || (bytes != 4 && bytes != 8)))
        die("%s of %lld bytes", name, (long long)bytes);
    if (source_bytes < 0 || source_bytes > bytes)
        die("%s: %lld source bytes for a copy of %lld", name, (long long)source_bytes, (long long)bytes);
    if (reinterpret_cast<uintptr_t>(from) % size_t(bytes) != 0)
        die("%s from %p, not a multiple of %lld", name, from, (long long)bytes);
    char* place = shared_memory(to, size_t(bytes), name);
    memset(place, 0xFF, size_t(bytes));
    worker->any_copies = true;
    if (worker->copied.empty()) worker->copied.resize(shared_arena_bytes / 16, {0, UINT64_MAX});
    AsyncCopies& mine = worker->copies[self->number];
    mine.pending.push_back({mine.group, place, from, unsigned(bytes), unsigned(source_bytes)});
}

// The copies of all groups but the latest `newest` committed ones land; `open` those not committed, too.
inline void land_copies(unsigned newest, bool open) {
    const unsigned group = worker->copies[self->number].group;
    std::vector<AsyncCopy>& copies = worker->copies[self->number].pending;
    size_t kept = 0;
    for (const AsyncCopy& c : copies) {
        if (open || c.group + newest < group) {
            memcpy(c.to, c.from, c.source_bytes);
            memset(c.to + c.source_bytes, 0, c.bytes - c.source_bytes);
            worker->copied[size_t(c.to - worker->shared) / 16] = {self->number,
                                                                  worker->copies[self->number].fences};
        } else {
            copies[kept++] = c;
        }
    }
    copies.resize(kept);
}

inline float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

// ---- one asm statement ----------------------------------------------------------------------------------

struct Text { // a piece of a string; what parsing at compile time needs
    const char* first;
    size_t size;
    constexpr bool operator==(const char* other) const {
        for (size_t i = 0; i < size; i++)
            if (other[i] != first[i]) return false; // also where `other` ends
        return other[size] == 0;
    }
};

struct Instruction {
    struct Argument {
        int operand;   // which of the asm's operands, or -1: the number itself
        int64_t value; // the number, or what an address adds to its register
    };
    Op op;
    const char* mnemonic;
    int count;
    bool modifier;
    int first_argument, n_arguments; // of the Assembly's
};

// Parsed by the compiler, so that what is left at run time is the instruction alone. A text that cannot be
// understood is reported when a thread comes to it.
struct Assembly {
    static constexpr int max_instructions = 4;
    static constexpr int max_arguments = 144;
    Instruction program[max_instructions] = {};
    Instruction::Argument all_arguments[max_arguments] = {};
    int n = 0, n_arguments = 0, line;
    const char* complaint = nullptr;
    Text about{};            // the piece of the text that the complaint is about
    const char* wanted = ""; // the operands it should have
    char shape[160] = {};    // the operands it has

    // `constraints` has a letter for each operand, outputs first; the text is the program's own.
    constexpr Assembly(const char* text, const char* constraints, int line) : line(line) {
        while (*text && !complaint) {
            while (blank(*text) || *text == ';') text++;
            const char* end = text;
            while (*end && *end != ';') end++;
            if (end > text) parse({text, size_t(end - text)}, constraints);
            text = end;
        }
    }

    static constexpr bool blank(char c) { return c == ' ' || c == '\n' || c == '\t'; }
    static constexpr bool digit(char c) { return c >= '0' && c <= '9'; }
    constexpr void complain(const char* what, Text where) { complaint = what, about = where; }

    // One statement: `mnemonic operand, operand ...`. Its operands are written down as in known_instructions.
    constexpr void parse(Text statement, const char* constraints) {
        const char *at = statement.first, *const end = at + statement.size;
        char mnemonic[80] = {};
        size_t length = 0;
        while (at < end && !blank(*at) && length + 1 < sizeof mnemonic) mnemonic[length++] = *at++;
        const Text name{statement.first, length};
        for (const char* const hint : {".L2::64B", ".L2::128B", ".L2::256B", "::cta"}) // change no result
            erase(mnemonic, hint);
        if (n == max_instructions) return complain("too many instructions in one asm statement", name);
        Instruction& instruction = program[n++];
        instruction.first_argument = n_arguments;
        size_t written = 0, list = 0; // `list`: where its first register is written
        bool in_list = false, address_offset = false;
        for (char& c : shape) c = 0;
        while (at < end) {
            if (written + 2 > sizeof shape || n_arguments == max_arguments)
                return complain("too many operands", name);
            Instruction::Argument& argument = all_arguments[n_arguments];
            const char c = *at++;
            if (c == '%' || digit(c) || c == '-') {
                int64_t value = digit(c) ? c - '0' : 0;
                for (; at < end && digit(*at); at++) value = value * 10 + (*at - '0');
                if (c == '-') value = -value;
                if (c == '%') {
                    int known = 0;
                    while (constraints[known]) known++;
                    if (value >= known) return complain("an operand number without an operand", name);
                    argument = {int(value), 0};
                    shape[written++] = constraints[value] == 'n' ? 'i' : constraints[value];
                    n_arguments++;
                } else if (address_offset) {
                    all_arguments[n_arguments - 1].value = value;
                } else {
                    argument = {-1, value};
                    shape[written++] = 'i';
                    n_arguments++;
                }
                address_offset = false;
            } else if (c == '+' && n_arguments > instruction.first_argument) {
                address_offset = true;
            } else if (!blank(c)) {
                if (c == '}') written = counted(list, written);
                in_list = c == '{' || (in_list && c != '}');
                if (c != ',' || !in_list) shape[written++] = c; // commas between the registers of a list go
                if (c == '{') list = written;
            }
        }
        instruction.n_arguments = n_arguments - instruction.first_argument;
        complain("the emulator does not know the PTX instruction", name);
        for (const Known& known : known_instructions) {
            if (!(Text{known.mnemonic, size(known.mnemonic)} == mnemonic)) continue;
            complain("wrong operands for", name);
            wanted = known.operands;
            if (!(Text{shape, written} == known.operands)) continue;
            instruction.op = known.op;
            instruction.mnemonic = known.mnemonic;
            instruction.count = known.count;
            instruction.modifier = known.modifier;
            complaint = nullptr;
            return;
        }
    }

    // Of a list that begins at `list` more than four registers of a kind become their number and the letter.
    constexpr size_t counted(size_t list, size_t written) {
        const size_t n = written - list;
        if (n <= 4) return written;
        for (size_t i = list + 1; i < written; i++)
            if (shape[i] != shape[list]) return written;
        const char letter = shape[list];
        written = list;
        for (size_t unit = n < 100 ? 10 : 100; unit > 0; unit /= 10)
            if (n >= unit) shape[written++] = char('0' + n / unit % 10);
        shape[written++] = letter;
        for (size_t i = written; i < list + n; i++) shape[i] = 0;
        return written;
    }

    static constexpr size_t size(const char* s) {
        size_t n = 0;
        while (s[n]) n++;
        return n;
    }
    static constexpr void erase(char* s, const char* part) {
        const size_t n = size(part);
        for (; *s; s++) {
            size_t same = 0;
            while (same < n && s[same] == part[same]) same++;
            if (same < n) continue;
            do s[0] = s[n];
            while (*s++);
            return;
        }
    }

    template <class... Operands> EMU_INLINE void operator()(Operands... operands) const {
        if (complaint)
            die("asm (line %d): %s '%.*s'%s%s%s%s", line, complaint, int(about.size), about.first,
                *wanted ? ": " : "", *wanted ? shape : "", *wanted ? ", expected " : "", wanted);
        const AsmOperand list[sizeof...(operands) + 1] = {operands...};
        for (int i = 0; i < n; i++) execute(program[i], list);
    }

    EMU_INLINE void execute(const Instruction& instruction, const AsmOperand* operands) const {
        const Instruction::Argument* const arguments = all_arguments + instruction.first_argument;
        const auto place = [&](int i) -> const AsmOperand& { return operands[arguments[i].operand]; };
        const auto number = [&](int i) -> int64_t { // an integer operand, an address or an immediate
            const Instruction::Argument& a = arguments[i];
            if (a.operand < 0) return a.value;
            const AsmOperand& operand = operands[a.operand];
            return (operand.constraint == 'r' ? int64_t(operand.get<uint32_t>()) : operand.get<int64_t>()) +
                   a.value;
        };
        const auto unary = [&](float (*f)(float)) {
            const float x = place(1).get<float>();
            place(0).set(instruction.modifier ? flushed(f(flushed(x))) : f(x));
        };
        switch (instruction.op) {
        case Op::mma: {
            uint32_t a[4], b[2];
            float c[4], d[4];
            for (int i = 0; i < 4; i++) a[i] = place(4 + i).get<uint32_t>();
            for (int i = 0; i < 2; i++) b[i] = place(8 + i).get<uint32_t>();
            for (int i = 0; i < 4; i++) c[i] = place(10 + i).get<float>();
            mma(d, a, b, c, line);
            for (int i = 0; i < 4; i++) place(i).set(d[i]);
            break;
        }
        case Op::ldmatrix: {
            LdmatrixLane lane{uint64_t(number(instruction.count)), {}};
            ldmatrix(lane, instruction.count, instruction.modifier, instruction.mnemonic, line);
            for (int i = 0; i < 4 && i < instruction.count; i++) place(i).set(lane.value[i]);
            break;
        }
        case Op::cp_async: {
            const int64_t bytes = number(2);
            cp_async(uint64_t(number(0)), reinterpret_cast<const void*>(number(1)), bytes,
                     instruction.n_arguments > 3 ? number(3) : bytes, instruction.modifier,
                     instruction.mnemonic);
            break;
        }
        case Op::commit:
            worker->copies[self->number].group++;
            break;
        case Op::wait_group:
            land_copies(unsigned(number(0)), false);
            break;
        case Op::wait_all:
            land_copies(0, true);
            break;
        case Op::fence_proxy:
            worker->copies[self->number].fences++;
            break;
        case Op::wgmma: {
            float* sums[128];
            const int n = instruction.count / 2;
            for (int i = 0; i < n; i++) sums[i] = static_cast<float*>(place(i).place);
            for (int i = 0; i < 3; i++)
                if (number(n + 2 + i) != 1) die("wgmma (line %d): only scales of 1 are emulated", line);
            wgmma({sums, instruction.count, uint64_t(number(n)), uint64_t(number(n + 1)), number(n + 5) != 0,
                   number(n + 6) != 0},
                  line);
            break;
        }
        case Op::wgmma_fence:
            wgmma_fence(line);
            break;
        case Op::wgmma_commit:
            wgmma_commit(line);
            break;
        case Op::wgmma_wait:
            wgmma_wait(unsigned(number(0)), line);
            break;
        case Op::bar:
            barrier_wait(unsigned(number(0)),
                         instruction.n_arguments > 1 ? unsigned(number(1)) : worker->n_threads, false,
                         "bar.sync", 0);
            break;
        case Op::prefetch: // the byte is touched, so that a sanitized build knows where it lies
            (void)*reinterpret_cast<const volatile char*>(number(0));
            break;
        case Op::wait_before:
            self->waited = true; // kernels run one after the other: the one before has ended
            break;
        case Op::launch_next:
            break;
        case Op::ex2:
            unary([](float x) { return exp2f(x); });
            break;
        case Op::lg2:
            unary([](float x) { return log2f(x); });
            break;
        case Op::rcp:
            unary([](float x) { return 1 / x; });
            break;
        case Op::rsqrt:
            unary([](float x) { return 1 / sqrtf(x); });
            break;
        case Op::sqrt:
            unary([](float x) { return sqrtf(x); });
            break;
        case Op::tanh:
            unary([](float x) { return tanhf(x); });
            break;
        case Op::cvt: // the first source goes to the upper half
            place(0).set(uint32_t(float_to_bf16(place(1).get<float>())) << 16 |
                         float_to_bf16(place(2).get<float>()));
            break;
        }
    }
};

} // namespace emu
