// Of Kotlin 1.8's standard library; compilers before that have it in a library of its own.

package ai.qexport.sample

inline fun <T : AutoCloseable, R> T.use(block: (T) -> R): R {
    try {
        return block(this)
    } finally {
        close()
    }
}
