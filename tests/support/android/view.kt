// Just enough of this package's API to type-check the sample.

package android.view
open class Context
open class View(c: Context) { fun setOnClickListener(f: (View) -> Unit) {}
    fun setPadding(a: Int, b: Int, c: Int, d: Int) {} }
