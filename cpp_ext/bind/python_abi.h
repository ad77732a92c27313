/* The part of Python's stable ABI (PEP 384, as of 3.11) that python.cpp needs, declared by hand, so that building from
   source does not ask for Python's development files: on many systems they are a package of their own that takes root
   to install. The stable ABI promises these names and layouts for every later 3.x. */
#pragma once

#include <cstddef>

using Py_ssize_t = ptrdiff_t;
struct PyThreadState;

extern "C" {
struct PyObject {
    Py_ssize_t ob_refcnt;
    void *ob_type;
};

struct Py_buffer {
    void *buf;
    PyObject *obj;
    Py_ssize_t len, itemsize;
    int readonly, ndim;
    char *format;
    Py_ssize_t *shape, *strides, *suboffsets;
    void *internal;
};

struct PyMethodDef {
    const char *name;
    PyObject *(*function)(PyObject *self, PyObject *const *arguments, Py_ssize_t n_arguments);
    int flags;
    const char *doc;
};

struct PyModuleDef {
    PyObject ob_base;
    PyObject *(*m_init)();
    Py_ssize_t m_index;
    PyObject *m_copy;
    const char *name, *doc;
    Py_ssize_t size;
    PyMethodDef *methods;
    void *slots, *traverse, *clear, *free;
};

enum { METH_FASTCALL = 0x0080, PYTHON_ABI_VERSION = 3 };
enum { PyBUF_WRITABLE = 0x0001, PyBUF_FORMAT = 0x0004, PyBUF_C_CONTIGUOUS = 0x0020 | 0x0010 | 0x0008 };

extern PyObject _Py_NoneStruct;
extern PyObject *PyExc_Exception, *PyExc_MemoryError, *PyExc_TypeError, *PyExc_ValueError;

PyObject *PyModule_Create2(PyModuleDef *, int);
int PyModule_AddObjectRef(PyObject *, const char *, PyObject *);
int PyModule_AddIntConstant(PyObject *, const char *, long);
int PyModule_AddStringConstant(PyObject *, const char *, const char *);
void Py_IncRef(PyObject *);
void Py_DecRef(PyObject *);
int PyObject_GetBuffer(PyObject *, Py_buffer *, int);
void PyBuffer_Release(Py_buffer *);
PyObject *PyErr_Format(PyObject *, const char *, ...);
PyObject *PyErr_NewExceptionWithDoc(const char *, const char *, PyObject *, PyObject *);
void PyErr_SetObject(PyObject *, PyObject *);
PyObject *PyErr_Occurred();
void PyErr_Clear();
PyObject *PyImport_ImportModule(const char *);
PyObject *PyObject_GetAttr(PyObject *, PyObject *);
PyObject *PyObject_GetAttrString(PyObject *, const char *);
PyObject *PyObject_CallMethod(PyObject *, const char *, const char *, ...);
PyObject *PyUnicode_InternFromString(const char *);
PyThreadState *PyEval_SaveThread();
void PyEval_RestoreThread(PyThreadState *);
PyObject *PyCapsule_New(void *, const char *, void (*)(PyObject *));
void *PyCapsule_GetPointer(PyObject *, const char *);
PyObject *Py_BuildValue(const char *, ...);
PyObject *PyBool_FromLong(long);
PyObject *PyLong_FromSize_t(size_t);
size_t PyLong_AsSize_t(PyObject *);
PyObject *PyNumber_Index(PyObject *);
double PyFloat_AsDouble(PyObject *);
PyObject *PyUnicode_FromString(const char *);
const char *PyUnicode_AsUTF8AndSize(PyObject *, Py_ssize_t *);
PyObject *PyUnicode_DecodeFSDefault(const char *);
PyObject *PyBytes_FromStringAndSize(const char *, Py_ssize_t);
int PyBytes_AsStringAndSize(PyObject *, char **, Py_ssize_t *);
PyObject *PyList_New(Py_ssize_t);
Py_ssize_t PyList_Size(PyObject *);
PyObject *PyList_GetItem(PyObject *, Py_ssize_t);
int PyList_SetItem(PyObject *, Py_ssize_t, PyObject *);
}
