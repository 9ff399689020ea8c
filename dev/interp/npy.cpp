// NumPy array files: see npy.h.
#include "npy.h"

std::string npy_shape_text(const std::vector<size_t>& shape) {
    std::string text = "(";
    for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

NpyArray read_npy(const std::string& path) {
    NpyArray array{MappedFile(path), {}, nullptr};
    const uint8_t* bytes = array.file.data;
    const size_t size = array.file.size;
    if (size < 10 || memcmp(bytes, "\x93NUMPY", 6) != 0)
        fail("%s: not an npy file: expected it to begin with \\x93NUMPY", path.c_str());
    const unsigned version = bytes[6];
    if (version < 1 || version > 3) fail("%s: npy version %u, expected 1, 2 or 3", path.c_str(), version);
    const size_t before = version == 1 ? 10 : 12; // the header's length has two bytes, or four
    size_t length = 0;
    for (size_t i = 8; i < before && i < size; i++) length |= size_t(bytes[i]) << 8 * (i - 8);
    if (size < before || length > size - before)
        fail("%s: cut off in its npy header: %zu bytes, expected a header of %zu", path.c_str(), size,
             length);

    const std::string header((const char*)bytes + before, length);
    NpyHeaderReader reader{header, path};
    std::string dtype;
    bool fortran = false, seen[3] = {};
    if (!reader.take('{')) reader.broken("'{'");
    while (!reader.take('}')) {
        const std::string name = reader.string();
        const size_t which = name == "descr" ? 0 : name == "fortran_order" ? 1 : name == "shape" ? 2 : 3;
        if (which == 3 || seen[which])
            fail("%s: npy header: unexpected entry %s", path.c_str(), quoted(name).c_str());
        seen[which] = true;
        if (!reader.take(':')) reader.broken("':'");
        if (which == 0) dtype = reader.string();
        if (which == 1) fortran = reader.boolean();
        if (which == 2) array.shape = reader.tuple();
        reader.take(',');
    }
    for (size_t i = 0; i < 3; i++)
        if (!seen[i])
            fail("%s: npy header lacks '%s'", path.c_str(),
                 i == 0   ? "descr"
                 : i == 1 ? "fortran_order"
                          : "shape");
    if (dtype != "<f4")
        fail("%s: its dtype is %s, expected '<f4' (float32)", path.c_str(), quoted(dtype).c_str());
    if (fortran) fail("%s: in Fortran order, expected C order", path.c_str());
    size_t count = sizeof(float);
    bool overflow = false;
    for (const size_t n : array.shape) overflow |= __builtin_mul_overflow(count, n, &count);
    const size_t begin = before + length;
    if (overflow || count != size - begin)
        fail("%s: %zu bytes of data, expected those of shape %s of float32", path.c_str(), size - begin,
             npy_shape_text(array.shape).c_str());
    if (begin % alignof(float))
        fail("%s: data begin at byte %zu, expected a multiple of 4", path.c_str(), begin);
    array.data = (const float*)(bytes + begin);
    return array;
}
