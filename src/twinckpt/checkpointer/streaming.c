/* Copying what the cache need not keep.

   A processor that stores into a line of memory reads that line first, and memmove of less than the
   last level of the cache is stored so: each byte crosses the memory bus three times. Streaming stores
   do not read what they overwrite. The source is in the cache afterwards, where it can be hashed. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>

enum { LINE_BYTES = 64, AHEAD_BYTES = 1024 };

static void stream(char *target, const char *source, size_t size)
{
    size_t head = -(uintptr_t)target % LINE_BYTES;
    if (head > size)
        head = size;
    memcpy(target, source, head);
    target += head, source += head, size -= head;
    for (; size >= LINE_BYTES; target += LINE_BYTES, source += LINE_BYTES, size -= LINE_BYTES) {
        const __m128i *from = (const __m128i *)source;
        __m128i *to = (__m128i *)target;
        _mm_prefetch(source + AHEAD_BYTES, _MM_HINT_T0);
        __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
        __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
        _mm_stream_si128(to, a);
        _mm_stream_si128(to + 1, b);
        _mm_stream_si128(to + 2, c);
        _mm_stream_si128(to + 3, d);
    }
    memcpy(target, source, size);
    _mm_sfence(); /* or another process might be told of bytes that are not there yet */
}
#else
#define stream memcpy
#endif

static PyObject *copy(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "copy takes a target, a source (addresses) and a size in bytes");
        return NULL;
    }
    char *target = PyLong_AsVoidPtr(arguments[0]);
    const char *source = PyLong_AsVoidPtr(arguments[1]);
    size_t size = PyLong_AsSize_t(arguments[2]);
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    stream(target, source, size);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"copy", (PyCFunction)(void (*)(void))copy, METH_FASTCALL,
     "copy(target, source, size_bytes)\n--\n\nCopy between two addresses; they must not overlap."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_streaming", .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__streaming(void) { return PyModuleDef_Init(&definition); }
